"""Rewards that compare texts without a model: ROUGE and exact match."""

from __future__ import annotations

from collections.abc import Sequence

from rwml_lightning.rewards.base import PredictedTexts, Scores, score_each
from rwml_lightning.rewards.rouge import RougeVariant, rouge
from rwml_lightning.schema import Score, Transition


class RougeReward:
    """F-measure of ROUGE between prediction and real next state, for tool replies (arXiv 2602.05842, section 4).

    Words are runs of letters and digits of any script, in lower case and without stemming; punctuation does not count. See
    :func:`rwml_lightning.rewards.rouge.words`. The paper rounds to steps of 0.2 and does not name the variant.

    Args:
        variant: ``rouge1`` and ``rouge2`` count common words and pairs of words, ``rougeL`` the longest common
            subsequence.
        round_to: Rounding step of the reward (to the nearest multiple); ``None`` for no rounding.
        success_similarity: F-measure above which a prediction counts as correct in evaluations.

    Raises:
        ValueError: If ``round_to`` is outside (0, 1].
    """

    def __init__(
        self,
        variant: RougeVariant = "rougeL",
        round_to: float | None = None,
        success_similarity: float = 0.8,
    ) -> None:
        if round_to is not None and not 0 < round_to <= 1:
            raise ValueError(
                f"reward.round_to is {round_to}; it must be above 0 and at most 1, for example 0.2"
            )
        self.variant = variant
        self.round_to = round_to
        self.success_similarity = success_similarity

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the similarity is the F-measure before rounding."""
        return score_each(transitions, predictions, self._score)

    def _score(self, prediction: str, next_state: str) -> Score:
        overlap = rouge(prediction, next_state, self.variant)
        reward = overlap if self.round_to is None else round(overlap / self.round_to) * self.round_to
        return Score(reward, overlap, True, {self.variant: overlap})


class ExactMatchReward:
    """Reward 1 if the prediction equals the real next state apart from white space, else 0.

    This reward is sparse, but cannot be hacked.
    """

    success_similarity = 0.5

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the similarity is the reward."""
        return score_each(transitions, predictions, self._score)

    @staticmethod
    def _score(prediction: str, next_state: str) -> Score:
        equal = float(prediction.split() == next_state.split())
        return Score(equal, equal, True)
