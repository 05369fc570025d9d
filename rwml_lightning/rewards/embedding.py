"""The reward of RWML: how close prediction and reality lie for a frozen sentence embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from rwml_lightning.models import resolve_model
from rwml_lightning.rewards.base import NO_PREDICTION
from rwml_lightning.rewards.embedding_server import EmbeddingServer
from rwml_lightning.rewards.server import RefusedError, Server
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
        server: Embeds by an OpenAI-compatible server in place of ``embedder``, for example vLLM's. A text that it refuses
            leaves its prediction without a score.

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
        server: Server | None = None,
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
        self._server = None if server is None else EmbeddingServer(server, batch_size)
        self._model: SentenceTransformer | None = None
        self._cache: dict[str, np.ndarray | None] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts, shape [texts, width]; each distinct text is embedded once and kept.

        Raises:
            RefusedError: The server refuses one of the texts.
        """
        vectors = [vector for vector in self._vectors(texts) if vector is not None]
        if len(vectors) < len(texts):
            raise RefusedError(
                f"the embedding server refuses {len(texts) - len(vectors)} of {len(texts)} texts"
            )
        return np.stack(vectors)

    def _vectors(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > self.cache_size:
            self._cache = {text: self._cache[text] for text in dict.fromkeys(texts) if text in self._cache}
        if missing:
            self._cache.update(zip(missing, self._encode(missing), strict=True))
        return [self._cache[text] for text in texts]

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        """See :class:`NextStateReward`."""
        answered = [i for i, prediction in enumerate(predictions) if prediction is not None]
        scores: list[Score | None] = [NO_PREDICTION] * len(predictions)
        texts = [str(predictions[i]) for i in answered] + [transitions[i].next_state for i in answered]
        vectors = self._vectors(texts)
        for i, predicted, real in zip(
            answered, vectors[: len(answered)], vectors[len(answered) :], strict=True
        ):
            if predicted is None or real is None:
                scores[i] = None
                continue
            cosine = float((predicted * real).sum())
            scores[i] = Score(self.reward(cosine), cosine, True, {"distance": 1 - cosine})
        return scores

    def reward(self, cosine: float) -> float:
        """Reward of one cosine similarity."""
        if self.mode == "cosine":
            return max(cosine, 0.0)
        return float(cosine > self.success_similarity)  # as evaluations have it, to the last bit

    def _encode(self, texts: list[str]) -> Sequence[np.ndarray | None]:
        if self._server is not None:
            return self._server.encode(texts)
        vectors = self._load().encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return list(np.asarray(vectors, dtype=np.float32))

    def _load(self) -> SentenceTransformer:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(str(resolve_model(self.embedder)), device=self.device)
        return self._model
