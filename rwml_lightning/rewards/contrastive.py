"""A reward that asks for the real next state rather than for one like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rwml_lightning.rewards.embedding import EmbeddingReward
from rwml_lightning.rewards.near_misses import near_misses
from rwml_lightning.rewards.vocabulary import learn_vocabulary
from rwml_lightning.schema import Score, Transition


class ContrastiveReward(EmbeddingReward):
    """The embedding reward, paid only where the prediction lies closer to reality than to each of its near misses.

    With unit vectors p of the prediction, r of the real next state and m of a near miss, the preference
    p.(r - m) / (1 - r.m) is 1 at r, 0 halfway and -1 at m. It measures in units of the distance between r and m, so that
    a near miss 0.01 away is told as well as one 0.5 away. The reward is that of :class:`EmbeddingReward` where the least
    preference over all near misses reaches ``margin``, else 0.

    Near misses are a function of the transition alone: names come from its own texts (history, observation, action), the
    things that a model may confuse there. See :mod:`rwml_lightning.rewards.near_misses`. They are made by rules for English:
    of other languages fewer are found, or none, and then nothing but the embedding reward is left. A near miss for which the
    embedder has no vector is not compared with.

    Args:
        margin: Least preference for the real next state, in [-1, 1]; 0 asks to be closer to it, 1 for its very place.
        per_kind: Most near misses of each kind.
        **embedding: As in :class:`EmbeddingReward`.

    Raises:
        ValueError: ``margin`` outside [-1, 1], or ``per_kind`` below 1.
    """

    def __init__(self, margin: float = 0.5, per_kind: int = 3, **embedding: Any) -> None:
        super().__init__(**embedding)
        if not -1 <= margin <= 1:
            raise ValueError(
                f"reward.margin is {margin}; a preference lies between -1 and 1, and 0.5 is usual"
            )
        if per_kind < 1:
            raise ValueError(f"reward.per_kind is {per_kind}; it must be at least 1")
        self.margin = margin
        self.per_kind = per_kind

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        """See :class:`NextStateReward`; the parts hold ``distance`` and ``preference``."""
        scores = super().score(transitions, predictions)
        answered = {
            i: score for i, score in enumerate(scores) if predictions[i] is not None and score is not None
        }
        contrasts = {t: self.contrasts(t) for t in dict.fromkeys(transitions[i] for i in answered)}
        if texts := [text for found in contrasts.values() for text in found]:
            self._embeddings(texts)  # all at once, into the cache
        for i, score in answered.items():
            preference = self._preference(
                str(predictions[i]), transitions[i].next_state, contrasts[transitions[i]]
            )
            reward = score.reward * (preference >= self.margin)
            scores[i] = replace(score, reward=reward, parts={**score.parts, "preference": preference})
        return scores

    def contrasts(self, transition: Transition) -> list[str]:
        """The near misses that a prediction must not resemble."""
        vocabulary = learn_vocabulary([transition])
        return [miss.text for miss in near_misses(transition, vocabulary, seed=0, per_kind=self.per_kind)]

    def _preference(self, prediction: str, real: str, contrasts: Sequence[str]) -> float:
        """Least preference for ``real``; 1 where no near miss can be told from it."""
        p, r = self.embed([prediction, real])
        misses = [one.vector for one in self._embeddings(contrasts) if one.vector is not None]
        if not misses:
            return 1.0
        away = r - np.stack(misses)  # [near misses, width]
        gains, distances = away @ p, away @ r
        seen = distances > 1e-6  # what the embedder holds for equal, it can't be asked to tell apart
        return float((gains[seen] / distances[seen]).min(initial=1.0))
