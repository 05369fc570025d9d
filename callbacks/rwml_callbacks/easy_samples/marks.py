"""Which training transitions are easy, and which of those stay: the arithmetic of RWML's easy-sample filter.

A transition is easy when a supervised copy of the model predicts it well (arXiv 2602.05842, section 3). The paper's
table gives 0.0 as the mean reward that suffices, with ">=", which taken literally makes everything easy, while about 30 %
were. So the threshold is given, or found for a share.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwml_lightning.rewards import NextStateReward
from rwml_lightning.rewards.base import score_checked
from rwml_lightning.schema import Score, Transition
from rwml_lightning.seeds import derive_seed

NUM_BINS = 10


@dataclass(frozen=True)
class Marks:
    """What the filter decides.

    Args:
        tau_easy: Mean reward that made a transition easy; ``None`` when none can be.
        easy: Ids of the easy transitions.
        kept: Ids of those transitions, easy or not, that stay in training.
    """

    tau_easy: float | None
    easy: frozenset[str]
    kept: frozenset[str]

    @property
    def easy_kept(self) -> frozenset[str]:
        """Easy ones that stay."""
        return self.easy & self.kept


def mean_rewards(
    reward: NextStateReward,
    tau_d: float | None,
    transitions: Sequence[Transition],
    predictions: Sequence[Sequence[str | None]],
) -> dict[str, float]:
    """Mean reward of each transition's predictions, by transition id; 0 without any verdict, so that it stays.

    Args:
        reward: Scores the predictions.
        tau_d: Pay 1 for a similarity above 1 - ``tau_d`` and else 0, whatever ``reward`` pays; ``None`` takes what it pays.
        transitions: What really happened.
        predictions: Predicted next states of each transition, at least one; ``None`` where an answer had none.

    Raises:
        ValueError: ``tau_d`` is given and the reward states no similarity.
    """
    owners = [transition for transition, group in zip(transitions, predictions, strict=True) for _ in group]
    scores = score_checked(reward, owners, [prediction for group in predictions for prediction in group])
    if tau_d is not None and any(s is not None and s.well_formed and s.similarity is None for s in scores):
        raise ValueError(
            f"data.predictions.reward ({type(reward).__name__}) states no similarity to hold against EasySampleFilter's tau_d: give "
            "the filter a reward of its own, EasySampleFilter's reward"
        )

    def paid(score: Score) -> float:
        if tau_d is None:
            return score.reward
        return float(score.similarity is not None and score.similarity > 1 - tau_d)

    remaining = iter(scores)
    means = {}
    for transition, group in zip(transitions, predictions, strict=True):
        verdicts = [score for score in itertools.islice(remaining, len(group)) if score is not None]
        means[transition.transition_id] = math.fsum(map(paid, verdicts)) / max(len(verdicts), 1)
    return means


def mark_easy(
    mean_rewards: Mapping[str, float],
    tau_easy: float | None,
    target_share: float,
    keep_probability: float,
    seed: int,
) -> Marks:
    """Mark easy transitions and draw those that stay.

    Args:
        mean_rewards: Mean reward of each transition's predictions, by transition id.
        tau_easy: Mean reward from which on a transition is easy; ``None`` finds it by :func:`calibrate`.
        target_share: Share that is to be easy when ``tau_easy`` is ``None``.
        keep_probability: Probability p that an easy transition stays; the others all do.
        seed: Seed of the draw, which for each transition depends on its id alone.
    """
    if tau_easy is None:
        tau_easy = calibrate(list(mean_rewards.values()), target_share)
    easy = frozenset(
        name for name, reward in mean_rewards.items() if tau_easy is not None and reward >= tau_easy
    )
    dropped = {name for name in easy if derive_seed(seed, "keep_easy", name) >= keep_probability * 2**31}
    return Marks(tau_easy, easy, frozenset(mean_rewards) - dropped)


def calibrate(mean_rewards: Sequence[float], target_share: float) -> float | None:
    """The threshold whose share of easy transitions is nearest to ``target_share``.

    Transitions with equal mean rewards are treated alike, so the share is met as nearly as these ties allow; of two
    shares equally near the smaller is taken. What was never predicted right is not easy: without a reward above 0 there
    is no threshold (``None``).
    """
    counts = Counter(reward for reward in mean_rewards if reward > 0)
    best, best_gap, num_easy = None, float("inf"), 0
    for reward in sorted(counts, reverse=True):
        num_easy += counts[reward]
        gap = abs(num_easy / len(mean_rewards) - target_share)
        if gap < best_gap:
            best, best_gap = reward, gap
    return best


def histogram(mean_rewards: Sequence[float], num_bins: int = NUM_BINS) -> list[int]:
    """Counts in equal bins of [0, 1], upper edges excluded but for the last; what lies outside counts at the end."""
    counts = [0] * num_bins
    for reward in mean_rewards:
        # Tenths lie on edges, where a product such as 0.7 * 10 may fall short by its rounding.
        counts[min(max(int(reward * num_bins + 1e-9), 0), num_bins - 1)] += 1
    return counts


def render_histogram(counts: Sequence[int], width: int = 40) -> str:
    """One line a bin: its lower edge, a bar, its count."""
    most = max(*counts, 1)
    return "\n".join(
        f"{index / len(counts):.1f} {'#' * round(width * count / most):<{width}} {count}"
        for index, count in enumerate(counts)
    )


def describe_marks(marks: Marks, num_judged: int) -> str:
    """One line for people: how many were easy, how many of them stay, how many remain."""
    if marks.tau_easy is None:
        return f"0 of {num_judged:,} training transitions are easy: no prediction earned a reward"
    return (
        f"{len(marks.easy):,} of {num_judged:,} training transitions are easy (mean reward >= {marks.tau_easy:g}); "
        f"{len(marks.easy_kept):,} of them kept, {len(marks.kept):,} remain"
    )


def check_marks(marks: Marks, num_judged: int, calibrated: bool) -> None:
    """Raise a ValueError that names the setting to change when everything or nothing is easy."""
    if 0 < len(marks.easy) < num_judged:
        return
    what = "every" if marks.easy else "no"
    advice = {
        (
            True,
            True,
        ): "its predictions all earn the same: lower EasySampleFilter's tau_d, or train its copy less "
        "(num_passes, learning_rate)",
        (True, False): "raise EasySampleFilter's tau_easy, or leave it out and set target_share",
        (
            False,
            True,
        ): "its copy predicts nothing right: raise EasySampleFilter's learning_rate, num_passes or tau_d",
        (False, False): "lower EasySampleFilter's tau_easy, or leave it out and set target_share",
    }[bool(marks.easy), calibrated]
    raise ValueError(f"{what} one of {num_judged:,} training transitions is easy: {advice}")
