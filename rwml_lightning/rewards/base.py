"""What every next-state reward looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from rwml_lightning.schema import Score, Transition

NO_PREDICTION = Score(reward=0.0, similarity=None, well_formed=False)
"""What an answer without a prediction earns."""


@runtime_checkable
class NextStateReward(Protocol):
    """Scores predictions against what really happened.

    ``success_similarity`` is the similarity above which a prediction counts as right in evaluations.
    """

    success_similarity: float

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        """Score a whole step at once.

        Args:
            transitions: What really happened, one per prediction.
            predictions: Predicted next states; ``None`` where the answer had none.

        Returns:
            One score per prediction; reward 0 where there is no prediction, and ``None`` where no verdict could be got:
            that is nobody's fault but the judge's, and must not be learnt from.
        """
        ...


def success_similarity(reward: NextStateReward, transition: Transition) -> float:
    """Similarity above which a prediction of this transition counts as right; a reward may have another for each."""
    choose = getattr(reward, "reward_for", None)
    return reward.success_similarity if choose is None else success_similarity(choose(transition), transition)


def score_checked(
    reward: NextStateReward, transitions: Sequence[Transition], predictions: Sequence[str | None]
) -> list[Score | None]:
    """What ``reward.score`` gives, once every number in it is finite, so that no NaN is trained on or averaged.

    Raises:
        ValueError: More or fewer scores than predictions, or a score with NaN or infinity in it; names the transition.
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
                    f"{name} gave the {part} {value} for transition {transition.transition_id}; a prediction without a verdict "
                    "has no score (None)"
                )
    return scores


def score_each(
    transitions: Sequence[Transition], predictions: Sequence[str | None], score: Callable[[str, str], Score]
) -> list[Score | None]:
    """Score predictions one by one by ``score(prediction, next_state)``."""
    return [
        NO_PREDICTION if prediction is None else score(prediction, transition.next_state)
        for transition, prediction in zip(transitions, predictions, strict=True)
    ]
