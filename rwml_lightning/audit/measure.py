"""Measure how a reward scores correct and wrong texts, and choose the threshold that separates them best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rwml_lightning.audit.candidates import OTHER_STATES, Candidate, Group, make_candidates
from rwml_lightning.evaluation import Predictor
from rwml_lightning.rewards.base import NextStateReward, score_checked
from rwml_lightning.rewards.near_misses import NEAR_MISSES
from rwml_lightning.rewards.rewordings import REWORDINGS
from rwml_lightning.schema import Score, Transition

TAUS = (
    *(round(m * 10.0**e, 6) for e in (-3, -2, -1) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
    1.0,
)
"""Candidate thresholds, as cosine distances; evenly spaced on a log scale."""
MIN_BALANCED_ACCURACY = 0.9
"""Smallest balanced accuracy at which a threshold counts as separating correct from wrong texts."""
MAX_NEAR_MISS_REWARD = 0.2
"""Largest reward of near misses without a warning, as a share of the reward of rewordings."""
_BATCH = 512


@dataclass(frozen=True)
class Example:
    """A scored text with the real next state; ``distance`` is ``None`` if the reward has no embedder."""

    real: str
    text: str
    reward: float
    distance: float | None


@dataclass(frozen=True)
class Row:
    """Results for one kind of text; rewards and shares are means over its texts.

    Args:
        group: Group of the kind.
        kind: Name of the change, or source of the text.
        count: Number of texts.
        reward: Mean reward as configured.
        distances: All cosine distances to the real next state, sorted; empty if the reward has no embedder.
        accepted: Share of texts with a distance below each of :data:`TAUS` (strict, as in the reward); empty if the reward
            has no embedder.
        example: Text with the worst result: the rewording with the lowest reward, or the wrong text with the highest. Ties
            go to the largest distance for rewordings, and to the smallest for wrong texts.
    """

    group: Group
    kind: str
    count: int
    reward: float
    distances: tuple[float, ...]
    accepted: tuple[float, ...]
    example: Example


@dataclass(frozen=True)
class Choice:
    """Best threshold and its accuracy.

    Args:
        tau_d: Threshold, as a cosine distance.
        hits: Share of rewordings accepted, averaged over kinds.
        false_alarms: Share of near misses accepted, averaged over kinds.
    """

    tau_d: float
    hits: float
    false_alarms: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the share of rewordings accepted and the share of near misses rejected; chance is 0.5."""
        return (self.hits + 1 - self.false_alarms) / 2


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Args:
        num_transitions: Number of audited transitions.
        tau_d: Distance below which evaluations count a prediction as correct, as configured.
        rows: One row per kind, ordered by group.
        choice: Best threshold; ``None`` if the reward has no embedder, or rewordings or near misses are missing.
    """

    num_transitions: int
    tau_d: float
    rows: tuple[Row, ...]
    choice: Choice | None

    def group(self, name: Group) -> list[Row]:
        """Return the rows of a group."""
        return [row for row in self.rows if row.group == name]

    def mean_reward(self, name: Group) -> float | None:
        """Average the rewards of the kinds in a group, with equal weight; ``None`` for an empty group."""
        rewards = [row.reward for row in self.group(name)]
        return sum(rewards) / len(rewards) if rewards else None


def audit_reward(
    reward: NextStateReward,
    transitions: Sequence[Transition],
    pool: Sequence[Transition],
    floors: Mapping[str, Predictor],
    seed: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Audit:
    """Score correct and wrong texts, made from real next states, with a reward.

    Args:
        reward: Reward to audit.
        transitions: Transitions to make texts for; at least one.
        pool: Transitions from which names, answers and other next states are drawn.
        floors: Predictors without a model.
        seed: Random seed; all draws depend only on it and the transition.
        track: Function that wraps the start indices of the batches to show progress.
    """
    candidates = make_candidates(transitions, pool, floors, seed)
    scores: list[Score | None] = []
    for start in track(range(0, len(candidates), _BATCH)):
        batch = candidates[start : start + _BATCH]
        scores += score_checked(reward, [c.transition for c in batch], [c.text for c in batch])
    by_kind: dict[str, list[tuple[Candidate, Score]]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        if score is None:  # the judge or the embedder gave no result
            continue
        by_kind.setdefault(candidate.kind, []).append((candidate, score))
    order = [kind for kind in (*REWORDINGS, *NEAR_MISSES, *OTHER_STATES, *floors) if kind in by_kind]
    rows = tuple(_row(kind, by_kind[kind]) for kind in order)
    return Audit(len(transitions), 1 - reward.success_similarity, rows, choose_tau(rows))


def choose_tau(rows: Sequence[Row]) -> Choice | None:
    """Choose the threshold in :data:`TAUS` with the best balanced accuracy of rewordings against near misses.

    All kinds have equal weight, independent of their number of texts. The middle one of equally good thresholds is chosen.
    """
    hits, false_alarms = shares(rows, "rewording"), shares(rows, "near miss")
    if not hits or not false_alarms:
        return None
    choices = [Choice(*item) for item in zip(TAUS, hits, false_alarms, strict=True)]
    best = max(choice.balanced_accuracy for choice in choices)
    equal = [choice for choice in choices if choice.balanced_accuracy > best - 1e-9]
    return equal[(len(equal) - 1) // 2]


def shares(rows: Sequence[Row], group: Group) -> tuple[float, ...]:
    """Compute the share of texts in a group accepted at each of :data:`TAUS`, averaged over kinds; empty without texts."""
    accepted = [row.accepted for row in rows if row.group == group and row.accepted]
    return tuple(np.mean(accepted, axis=0).tolist()) if accepted else ()


def _row(kind: str, scored: Sequence[tuple[Candidate, Score]]) -> Row:
    group = scored[0][0].group
    examples = [
        Example(c.transition.next_state, c.text, s.reward, None if s.similarity is None else 1 - s.similarity)
        for c, s in scored
    ]
    sign = -1 if group == "rewording" else 1
    distances = np.sort([e.distance for e in examples if e.distance is not None])
    return Row(
        group=group,
        kind=kind,
        count=len(scored),
        reward=sum(example.reward for example in examples) / len(examples),
        distances=tuple(distances.tolist()),
        accepted=tuple((distances[:, None] < np.array(TAUS)).mean(axis=0).tolist()) if len(distances) else (),
        example=max(examples, key=lambda e: (e.reward * sign, -(e.distance or 0.0) * sign)),
    )
