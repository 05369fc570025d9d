"""The reward of RWML: how close prediction and reality lie for a frozen sentence embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from rwml_lightning.models import resolve_model
from rwml_lightning.schema import Score, Transition

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EmbeddingReward:
    """Embedding cosine distance with a threshold (arXiv 2602.05842, section 3, the reward r^WM).

    With d = 1 - cos(E(prediction), E(real next state)), the reward is 1 if d < ``tau_d`` (strict) and 0 otherwise;
    in ``cosine`` mode it is the cosine itself, not below 0. The embedder is loaded at the first use, and every text
    is embedded once: real next states return at every step, predictions often repeat.

    Args:
        embedder: Sentence-transformers model: a folder, a hub id, or ``package:all-minilm-l6-v2``.
        tau_d: Largest distance (exclusive) that earns the reward. Paper: 0.2 on ALFWorld.
        mode: ``threshold`` (the paper's) or ``cosine``.
        batch_size: Texts embedded at once.
        device: Where the embedder runs, for example ``cpu`` or ``cuda``; ``None`` lets sentence-transformers choose.
        cache_size: Most embeddings kept.

    Raises:
        ValueError: ``tau_d`` outside (0, 2], or an unknown ``mode``.
    """

    def __init__(
        self,
        embedder: str = "Qwen/Qwen3-Embedding-8B",
        tau_d: float = 0.2,
        mode: Literal["threshold", "cosine"] = "threshold",
        batch_size: int = 64,
        device: str | None = None,
        cache_size: int = 100_000,
    ) -> None:
        if not 0 < tau_d <= 2:
            raise ValueError(
                f"reward.tau_d is {tau_d}; a cosine distance lies between 0 and 2, and 0.2 is usual"
            )
        if mode not in ("threshold", "cosine"):
            raise ValueError(f"reward.mode is {mode!r}; it takes 'threshold' or 'cosine'")
        self.embedder = embedder
        self.tau_d = tau_d
        self.mode = mode
        self.batch_size = batch_size
        self.device = device
        self.cache_size = cache_size
        self.success_similarity = 1 - tau_d
        self._model: SentenceTransformer | None = None
        self._cache: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts, shape [texts, width]; each distinct text is embedded once and kept."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > self.cache_size:
            self._cache = {text: self._cache[text] for text in dict.fromkeys(texts) if text in self._cache}
        if missing:
            vectors = self._load().encode(
                missing, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            self._cache.update(zip(missing, np.asarray(vectors, dtype=np.float32), strict=True))
        return np.stack([self._cache[text] for text in texts])

    def score(self, transitions: Sequence[Transition], predictions: Sequence[str | None]) -> list[Score]:
        """See :class:`NextStateReward`."""
        answered = [i for i, prediction in enumerate(predictions) if prediction is not None]
        scores = [Score(reward=0.0, similarity=None, well_formed=False) for _ in predictions]
        if not answered:
            return scores
        texts = [str(predictions[i]) for i in answered] + [transitions[i].next_state for i in answered]
        vectors = self.embed(texts)
        cosines = (vectors[: len(answered)] * vectors[len(answered) :]).sum(axis=1)
        for i, cosine in zip(answered, cosines.tolist(), strict=True):
            scores[i] = Score(self.reward(cosine), cosine, True, {"distance": 1 - cosine})
        return scores

    def reward(self, cosine: float) -> float:
        """Reward of one cosine similarity."""
        if self.mode == "cosine":
            return max(cosine, 0.0)
        return float(cosine > self.success_similarity)  # as evaluations have it, to the last bit

    def _load(self) -> SentenceTransformer:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(str(resolve_model(self.embedder)), device=self.device)
        return self._model
