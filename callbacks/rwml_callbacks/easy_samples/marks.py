"""Selection of easy training transitions and of those that stay: the arithmetic of RWML's easy-sample filter.

A transition is easy when a supervised copy of the model predicts it well (arXiv 2602.05842, section 3). The paper's
table gives the threshold on the mean reward as ">= 0.0". Taken literally, this makes every transition easy, while the
paper reports about 30 %. So the threshold here is either set or chosen for a target share.
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
    """Decision of the filter.

    Args:
        tau_easy: Smallest mean reward of an easy transition; ``None`` if no transition can be easy.
        easy: Ids of the easy transitions.
        kept: Ids of all judged transitions, easy or not, that stay in training.
    """

    tau_easy: float | None
    easy: frozenset[str]
    kept: frozenset[str]

    @property
    def easy_kept(self) -> frozenset[str]:
        """Ids of the easy transitions that stay."""
        return self.easy & self.kept


def mean_rewards(
    reward: NextStateReward,
    tau_d: float | None,
    transitions: Sequence[Transition],
    predictions: Sequence[Sequence[str | None]],
) -> dict[str, float]:
    """Return the mean reward of each transition's predictions by transition id.

    A transition without any scored prediction gets 0, so that it stays in training.

    Args:
        reward: Reward that scores the predictions.
        tau_d: Count 1 for a similarity above 1 - ``tau_d``, else 0; ``None`` uses the rewards themselves.
        transitions: Transitions with their real next states.
        predictions: Predicted next states of each transition, at least one; ``None`` for an answer without one.

    Raises:
        ValueError: ``tau_d`` is given, but the reward gives no similarity.
    """
    owners = [transition for transition, group in zip(transitions, predictions, strict=True) for _ in group]
    scores = score_checked(reward, owners, [prediction for group in predictions for prediction in group])
    if tau_d is not None and any(s is not None and s.well_formed and s.similarity is None for s in scores):
        raise ValueError(
            f"data.predictions.reward ({type(reward).__name__}) gives no similarity to compare with EasySampleFilter's tau_d: set "
            "another reward for the filter, EasySampleFilter's reward"
        )

    def reward_of(score: Score) -> float:
        if tau_d is None:
            return score.reward
        return float(score.similarity is not None and score.similarity > 1 - tau_d)

    remaining = iter(scores)
    means = {}
    for transition, group in zip(transitions, predictions, strict=True):
        valid = [score for score in itertools.islice(remaining, len(group)) if score is not None]
        means[transition.transition_id] = math.fsum(map(reward_of, valid)) / max(len(valid), 1)
    return means


def mark_easy(
    mean_rewards: Mapping[str, float],
    tau_easy: float | None,
    target_share: float,
    keep_probability: float,
    seed: int,
) -> Marks:
    """Mark easy transitions and draw the ones that stay.

    Args:
        mean_rewards: Mean reward of each transition's predictions, by transition id.
        tau_easy: Smallest mean reward of an easy transition; ``None`` chooses it by :func:`calibrate`.
        target_share: Intended share of easy transitions if ``tau_easy`` is ``None``.
        keep_probability: Probability p that an easy transition stays; all others stay.
        seed: Seed of the draw. The draw of a transition depends only on this seed and the transition's id.
    """
    if tau_easy is None:
        tau_easy = calibrate(list(mean_rewards.values()), target_share)
    easy = frozenset(
        name for name, reward in mean_rewards.items() if tau_easy is not None and reward >= tau_easy
    )
    dropped = {name for name in easy if derive_seed(seed, "keep_easy", name) >= keep_probability * 2**31}
    return Marks(tau_easy, easy, frozenset(mean_rewards) - dropped)


def calibrate(mean_rewards: Sequence[float], target_share: float) -> float | None:
    """Choose the threshold that brings the share of easy transitions nearest to ``target_share``.

    Transitions with equal mean rewards are treated alike, so the share may differ from the target. If two shares are
    equally near, the smaller one is chosen. A transition with a mean reward of 0 is never easy; the threshold is ``None``
    if no mean reward is above 0.
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
    """Count values in equal bins of [0, 1] without their upper edges, except the last; outer values count at the ends."""
    counts = [0] * num_bins
    for reward in mean_rewards:
        # Multiples of 0.1 lie on edges, where rounding can make a product such as 0.7 * 10 too small.
        counts[min(max(int(reward * num_bins + 1e-9), 0), num_bins - 1)] += 1
    return counts


def render_histogram(counts: Sequence[int], width: int = 40) -> str:
    """Draw one line per bin: its lower edge, a bar and its count."""
    most = max(*counts, 1)
    return "\n".join(
        f"{index / len(counts):.1f} {'#' * round(width * count / most):<{width}} {count}"
        for index, count in enumerate(counts)
    )


def describe_marks(marks: Marks, num_judged: int) -> str:
    """Describe in one line how many transitions are easy, how many of these stay, and how many remain in all."""
    if marks.tau_easy is None:
        return f"0 of {num_judged:,} training transitions are easy: no prediction earned a reward"
    return (
        f"{len(marks.easy):,} of {num_judged:,} training transitions are easy (mean reward >= {marks.tau_easy:g}); "
        f"{len(marks.easy_kept):,} of them kept, {len(marks.kept):,} remain"
    )


def check_marks(marks: Marks, num_judged: int, calibrated: bool) -> None:
    """Raise a ValueError that names the setting to change if every or no transition is easy."""
    if 0 < len(marks.easy) < num_judged:
        return
    what, direction = ("every", "raise") if marks.easy else ("no", "lower")
    advice = f"{direction} EasySampleFilter's tau_easy, or leave it out and set target_share"
    if calibrated and marks.easy:
        advice = (
            "all predictions earn the same reward: lower EasySampleFilter's tau_d, or train the copy less "
            "(num_passes, learning_rate)"
        )
    elif calibrated:
        advice = (
            "the copy predicts nothing correctly: raise EasySampleFilter's learning_rate, num_passes or tau_d"
        )
    raise ValueError(f"{what} one of {num_judged:,} training transitions is easy: {advice}")
