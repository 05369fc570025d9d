"""Predictions that need no model, to report beside a model's: those of the environment's own, or what any environment has."""

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
    """Floors by name: from a transition (its next state unread) to a predicted next state.

    ALFWorld has its own (:mod:`rwml_lightning.envs.alfworld.floors`). Anywhere else there are ``copy_observation``, where the next
    state may be the current one, and ``most_common``, the most common answer to actions of the same tool or first word.

    Args:
        transitions: Transitions to predict, of one environment.
        known: Training transitions, for ``most_common``; without any there is none.
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
    """The tool that an action calls, or its first word; of what has none the empty text."""
    found = _TOOL_NAME.search(action)
    if found:
        return found.group(1)
    word = _FIRST_WORD.search(action)
    return word.group() if word else ""
