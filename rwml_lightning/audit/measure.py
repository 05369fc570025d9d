"""How a reward takes right and wrong texts, and the threshold that tells them apart best."""

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
"""Thresholds that are tried, as cosine distances; evenly spread by ratio."""
SEPARATES = 0.9
"""Least balanced accuracy at which a threshold counts as telling right from wrong."""
MOST_FOR_NEAR_MISSES = 0.2
"""Largest reward of near misses, as a share of that of rewordings, that passes without a warning."""
_BATCH = 512


@dataclass(frozen=True)
class Example:
    """One text beside the real next state; ``distance`` is ``None`` where the reward does not embed."""

    real: str
    text: str
    reward: float
    distance: float | None


@dataclass(frozen=True)
class Row:
    """One kind of text; rewards and shares are means over its texts.

    Args:
        group: What it belongs to.
        kind: What was changed, or where the text is from.
        count: Texts.
        reward: Mean reward as configured.
        distances: All cosine distances to the real next state, sorted; empty where the reward does not embed.
        accepted: Share with a distance under each of :data:`TAUS` (strict, as the reward has it); empty likewise.
        example: The worst judged text: of rewordings the one that the reward takes worst, of wrong ones the one that it
            takes best; of several the farthest, or the nearest.
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
    """The best threshold.

    Args:
        tau_d: Cosine distance.
        hits: Share of rewordings accepted, mean of their kinds.
        false_alarms: Share of near misses accepted, mean of their kinds.
    """

    tau_d: float
    hits: float
    false_alarms: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the share of right texts accepted and the share of near misses refused; 0.5 is chance."""
        return (self.hits + 1 - self.false_alarms) / 2


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Args:
        num_transitions: Transitions whose next states were varied.
        tau_d: Distance under which evaluations count a prediction as right, as configured.
        rows: One a kind, groups together.
        choice: Best threshold; ``None`` where the reward does not embed, or there is nothing to tell apart.
    """

    num_transitions: int
    tau_d: float
    rows: tuple[Row, ...]
    choice: Choice | None

    def group(self, name: Group) -> list[Row]:
        """The rows of one group."""
        return [row for row in self.rows if row.group == name]

    def mean_reward(self, name: Group) -> float | None:
        """Mean reward of a group, each kind counting once; ``None`` without any."""
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
    """Try a reward on right and wrong texts made from real next states.

    Args:
        reward: What is audited.
        transitions: Those whose next states are varied; at least one.
        pool: Where names, answers and other next states come from.
        floors: Predictors without a model.
        seed: Everything drawn is a function of it and the transition.
        track: Wraps the starts of the batches, to show progress.
    """
    candidates = make_candidates(transitions, pool, floors, seed)
    scores: list[Score | None] = []
    for start in track(range(0, len(candidates), _BATCH)):
        batch = candidates[start : start + _BATCH]
        scores += score_checked(reward, [c.transition for c in batch], [c.text for c in batch])
    by_kind: dict[str, list[tuple[Candidate, Score]]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        if score is None:  # no verdict says nothing
            continue
        by_kind.setdefault(candidate.kind, []).append((candidate, score))
    order = [kind for kind in (*REWORDINGS, *NEAR_MISSES, *OTHER_STATES, *floors) if kind in by_kind]
    rows = tuple(_row(kind, by_kind[kind]) for kind in order)
    return Audit(len(transitions), 1 - reward.success_similarity, rows, choose_tau(rows))


def choose_tau(rows: Sequence[Row]) -> Choice | None:
    """The threshold of :data:`TAUS` with the best balanced accuracy of rewordings against near misses.

    Each kind counts once, however many texts it has. Of thresholds that do equally well, the middle one is chosen.
    """
    hits, false_alarms = shares(rows, "rewording"), shares(rows, "near miss")
    if not hits or not false_alarms:
        return None
    choices = [Choice(*item) for item in zip(TAUS, hits, false_alarms, strict=True)]
    best = max(choice.balanced_accuracy for choice in choices)
    equal = [choice for choice in choices if choice.balanced_accuracy > best - 1e-9]
    return equal[(len(equal) - 1) // 2]


def shares(rows: Sequence[Row], group: Group) -> tuple[float, ...]:
    """Share of a group's texts accepted at each of :data:`TAUS`, mean of its kinds; empty without any."""
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
