"""A reward that separates the real next state from similar wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rwml_lightning.rewards.base import PredictedTexts, Scores
from rwml_lightning.rewards.embedding import EmbeddingReward
from rwml_lightning.rewards.near_misses import near_misses
from rwml_lightning.rewards.vocabulary import learn_vocabulary
from rwml_lightning.schema import Transition


class ContrastiveReward(EmbeddingReward):
    """Gives the embedding reward only if the prediction is closer to the real next state than to each of its near misses.

    With unit vectors p of the prediction, r of the real next state and m of a near miss, the preference
    p.(r - m) / (1 - r.m) is 1 at r, 0 halfway and -1 at m. Its unit is the distance between r and m, so a near miss at
    distance 0.01 is separated as well as a near miss at 0.5. The reward equals that of :class:`EmbeddingReward` if the
    smallest preference over all near misses is at least ``margin``, else 0.

    Near misses depend on the transition alone: their names come from its texts (history, observation, action), which name
    the objects that a model may confuse. See :mod:`rwml_lightning.rewards.near_misses`. The rules that make them are for
    English. They make few or no near misses in other languages; without near misses this is the embedding reward. A near
    miss for which the embedder has no vector is ignored.

    Args:
        margin: Smallest preference for the real next state that earns the reward, in [-1, 1]. With 0 the prediction must be
            at least as close to the real next state as to each near miss; with 1 its embedding must match the real one.
        per_kind: Maximum number of near misses of each kind.
        **embedding: Arguments of :class:`EmbeddingReward`.

    Raises:
        ValueError: If ``margin`` is outside [-1, 1], or ``per_kind`` is below 1.
    """

    def __init__(self, margin: float = 0.5, per_kind: int = 3, **embedding: Any) -> None:
        super().__init__(**embedding)
        if not -1 <= margin <= 1:
            raise ValueError(f"reward.margin is {margin}; it must be between -1 and 1, for example 0.5")
        if per_kind < 1:
            raise ValueError(f"reward.per_kind is {per_kind}; it must be at least 1")
        self.margin = margin
        self.per_kind = per_kind

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the parts hold ``distance`` and ``preference``."""
        scores = super().score(transitions, predictions)
        answered = {
            i: score for i, score in enumerate(scores) if predictions[i] is not None and score is not None
        }
        contrasts = {t: self.contrasts(t) for t in dict.fromkeys(transitions[i] for i in answered)}
        if texts := [text for found in contrasts.values() for text in found]:
            self._embeddings(texts)  # fills the cache in one batch
        for i, score in answered.items():
            preference = self._preference(
                str(predictions[i]), transitions[i].next_state, contrasts[transitions[i]]
            )
            reward = score.reward * (preference >= self.margin)
            scores[i] = replace(score, reward=reward, parts={**score.parts, "preference": preference})
        return scores

    def contrasts(self, transition: Transition) -> list[str]:
        """Return the near misses that a prediction is compared with."""
        vocabulary = learn_vocabulary([transition])
        return [miss.text for miss in near_misses(transition, vocabulary, seed=0, per_kind=self.per_kind)]

    def _preference(self, prediction: str, real: str, contrasts: Sequence[str]) -> float:
        """Compute the smallest preference for ``real``; 1 if the embedder separates no near miss from it."""
        p, r = self.embed([prediction, real])
        misses = [one.vector for one in self._embeddings(contrasts) if one.vector is not None]
        if not misses:
            return 1.0
        away = r - np.stack(misses)  # [near misses, width]
        gains, distances = away @ p, away @ r
        separable = distances > 1e-6  # skip near misses to which the embedder gives the same vector
        return float((gains[separable] / distances[separable]).min(initial=1.0))
