"""Floors: model-free predictors to compare a model with, from the environment itself or generic."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rwml_lightning.envs.alfworld.floors import FLOORS as ALFWORLD_FLOORS
from rwml_lightning.evaluation import Predictor
from rwml_lightning.schema import Transition

_TOOL_NAME = re.compile(r'<tool_call>\s*\{"name":\s*"(\w+)"')
_FIRST_WORD = re.compile(r"\w+")


def floors_for(transitions: Sequence[Transition], known: Sequence[Transition]) -> Mapping[str, Predictor]:
    """Return floors by name. A floor predicts the next state of a transition without reading the real one.

    ALFWorld has its own floors (:mod:`rwml_lightning.envs.alfworld.floors`). Every other environment has ``copy_observation``,
    which predicts the current state, and ``most_common``, which predicts the most common next state after actions with the
    same tool or first word.

    Args:
        transitions: Transitions to predict, of one environment.
        known: Training transitions for ``most_common``. Without any, ``most_common`` is left out.
    """
    if transitions and "alfworld" in transitions[0].environment.lower():
        return ALFWORLD_FLOORS
    floors: dict[str, Predictor] = {"copy_observation": lambda transition: transition.observation}
    if known:
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for one in known:
            answers[_verb(one.action)][one.next_state] += 1
            answers[""][one.next_state] += 1
        common = {verb: counts.most_common(1)[0][0] for verb, counts in answers.items()}
        floors["most_common"] = lambda transition: common.get(_verb(transition.action), common[""])
    return floors


def _verb(action: str) -> str:
    """Return the tool that an action calls, or its first word; empty if it has neither."""
    found = _TOOL_NAME.search(action)
    if found:
        return found.group(1)
    word = _FIRST_WORD.search(action)
    return word.group() if word else ""
