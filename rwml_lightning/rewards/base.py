"""Interface of next-state rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from rwml_lightning.schema import Score, Transition

PredictedTexts = Sequence[str | None]
"""Predicted next states; ``None`` for a completion without a prediction."""
Scores = list[Score | None]
"""Scores of predictions; ``None`` for one that must not be trained on, since the judge or the embedder gave no result."""
NO_PREDICTION = Score(reward=0.0, similarity=None, well_formed=False)
"""Score of a completion without a prediction."""


@runtime_checkable
class NextStateReward(Protocol):
    """Scores predicted next states against the real ones.

    ``success_similarity`` is the similarity above which a prediction counts as correct in evaluations.
    """

    success_similarity: float

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """Score all predictions of a step in one call.

        Args:
            transitions: Real transitions, one per prediction.
            predictions: Predicted next states; ``None`` for a completion without a prediction.

        Returns:
            One score per prediction. A missing prediction gets reward 0. ``None`` means that the judge or the embedder
            gave no result; such a prediction must not be trained on.
        """
        ...


def success_similarity(reward: NextStateReward, transition: Transition) -> float:
    """Return the similarity above which a prediction of ``transition`` counts as correct; it may differ by transition."""
    choose = getattr(reward, "reward_for", None)
    return reward.success_similarity if choose is None else success_similarity(choose(transition), transition)


def score_checked(
    reward: NextStateReward, transitions: Sequence[Transition], predictions: PredictedTexts
) -> Scores:
    """Call ``reward.score`` and check that all numbers are finite, so that no NaN is trained on or averaged.

    Raises:
        ValueError: If the number of scores differs from the number of predictions, or a score holds NaN or infinity;
            the message names the transition.
    """
    name = type(reward).__name__
    scores = reward.score(transitions, predictions)
    if len(scores) != len(predictions):
        raise ValueError(f"{name} gave {len(scores)} scores for {len(predictions)} predictions")
    for transition, score in zip(transitions, scores, strict=True):
        if score is None:
            continue
        values = {"reward": score.reward, "similarity": score.similarity or 0.0, **score.parts}
        for part, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} gave the {part} {value} for transition {transition.transition_id}; return None for a prediction "
                    "that cannot be scored"
                )
    return scores


def score_each(
    transitions: Sequence[Transition], predictions: PredictedTexts, score: Callable[[str, str], Score]
) -> Scores:
    """Score each prediction with ``score(prediction, next_state)``."""
    return [
        NO_PREDICTION if prediction is None else score(prediction, transition.next_state)
        for transition, prediction in zip(transitions, predictions, strict=True)
    ]
