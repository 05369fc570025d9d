"""Weighted sum of several rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rwml_lightning.rewards.base import NO_PREDICTION, NextStateReward, PredictedTexts, Scores
from rwml_lightning.schema import Score, Transition


class WeightedReward:
    """Weighted sum of named rewards; ``Score.parts`` keeps the value and the parts of each reward.

    The similarity, which evaluations use, is that of the first reward. A prediction that one of the rewards cannot score
    has no score.

    Args:
        rewards: Rewards by name.
        weights: Weights by the same names; they need not add up to 1.

    Raises:
        ValueError: If there is no reward, the names differ, or a weight is not finite.
    """

    def __init__(self, rewards: dict[str, NextStateReward], weights: dict[str, float]) -> None:
        if not rewards:
            raise ValueError("reward.rewards is empty; name at least one reward")
        for name in sorted(rewards.keys() ^ weights.keys()):
            lacking = "weights" if name in rewards else "rewards"
            raise ValueError(
                f"reward.{lacking} has no {name!r}; reward.rewards and reward.weights need the same names"
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"reward.weights.{name} is {weight}; it must be finite")
        self.rewards = rewards
        self.weights = weights
        self.success_similarity = next(iter(rewards.values())).success_similarity

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`."""
        columns = [reward.score(transitions, predictions) for reward in self.rewards.values()]
        return [self._combine(row) for row in zip(*columns, strict=True)]

    def _combine(self, row: Sequence[Score | None]) -> Score | None:
        scores = [score for score in row if score is not None]
        if len(scores) < len(row):
            return None
        if not scores[0].well_formed:
            return NO_PREDICTION
        parts: dict[str, float] = {}
        for name, score in zip(self.rewards, scores, strict=True):
            parts[name] = score.reward
            parts |= {f"{name}/{part}": value for part, value in score.parts.items()}
        total = sum(self.weights[name] * parts[name] for name in self.rewards)
        return Score(total, scores[0].similarity, True, parts)
