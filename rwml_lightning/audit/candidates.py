"""Candidate texts for an audit: correct rewordings, and wrong texts from near misses to unrelated states."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rwml_lightning.evaluation import Predictor
from rwml_lightning.rewards.near_misses import near_misses
from rwml_lightning.rewards.rewordings import rewordings
from rwml_lightning.rewards.vocabulary import learn_vocabulary
from rwml_lightning.schema import Transition
from rwml_lightning.seeds import derive_seed

Group = Literal["rewording", "near miss", "other state", "floor"]
OTHER_STATES = ("same kind of step", "any step")
"""Sources of next states of other transitions."""


@dataclass(frozen=True)
class Candidate:
    """A text that the reward scores as a prediction.

    Args:
        group: Group of the text: ``rewording`` is correct, all others are wrong.
        kind: Kind of text within its group.
        transition: Real transition.
        text: Text to score.
    """

    group: Group
    kind: str
    transition: Transition
    text: str


def make_candidates(
    transitions: Sequence[Transition],
    pool: Sequence[Transition],
    floors: Mapping[str, Predictor],
    seed: int,
) -> list[Candidate]:
    """Make rewordings, near misses, other real next states and predictions of the floors for each transition.

    A wrong text that equals the real next state, apart from white space, is left out.

    Args:
        transitions: Transitions to make texts for.
        pool: Transitions from which names, answers and other next states are drawn.
        floors: Predictors without a model.
        seed: Random seed; all draws depend only on it and the transition.
    """
    vocabulary = learn_vocabulary(pool)
    states: dict[str, dict[str, None]] = {}  # distinct next states by kind of step, in order
    for transition in pool:
        states.setdefault(transition.kind, {}).setdefault(transition.next_state)
    by_kind = {kind: list(texts) for kind, texts in states.items()}
    everything = list(dict.fromkeys(text for texts in by_kind.values() for text in texts))
    audit_seed = derive_seed(seed, "audit")
    found = []
    for transition in transitions:
        for variant in rewordings(transition, vocabulary, audit_seed):
            found.append(Candidate("rewording", variant.kind, transition, variant.text))
        wrong = [
            Candidate("near miss", variant.kind, transition, variant.text)
            for variant in near_misses(transition, vocabulary, audit_seed)
        ]
        rng = random.Random(derive_seed(audit_seed, "other", transition.transition_id))
        same_kind = by_kind.get(transition.kind, everything)
        wrong += [
            Candidate("other state", kind, transition, rng.choice(texts))
            for kind, texts in zip(OTHER_STATES, (same_kind, everything), strict=True)
        ]
        wrong += [Candidate("floor", name, transition, floor(transition)) for name, floor in floors.items()]
        real = transition.next_state.split()
        found += [candidate for candidate in wrong if candidate.text.split() != real]
    return found
