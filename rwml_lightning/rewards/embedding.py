"""The reward of RWML: similarity of predicted and real next state under a frozen sentence embedder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from rwml_lightning.models import resolve_model
from rwml_lightning.printable import well_formed
from rwml_lightning.rewards.base import NO_PREDICTION, PredictedTexts, Scores
from rwml_lightning.rewards.embedding_server import EmbeddingServer
from rwml_lightning.rewards.sentence_embedder import Embedding, LongTexts, SentenceEmbedder
from rwml_lightning.rewards.server import RefusedError, Server
from rwml_lightning.schema import Score, Transition

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EmbeddingReward:
    """Embedding cosine distance with a threshold (arXiv 2602.05842, section 3, the reward r^WM).

    With d = 1 - cos(E(prediction), E(real next state)), the reward is 1 if d < ``tau_d`` (strict) and 0 otherwise;
    in ``cosine`` mode it is the cosine, clamped to at least 0. The embedder is loaded at the first use. Embeddings are
    cached, because real next states return at every step and predictions often repeat.

    Args:
        embedder: Sentence-transformers model: a folder, a hub id, or ``package:all-minilm-l6-v2``.
        tau_d: Cosine distance below which a prediction earns the reward. Paper: 0.2 on ALFWorld.
        mode: ``threshold`` (as in the paper) or ``cosine``.
        batch_size: Number of texts per batch of the embedder.
        device: Device of the embedder, for example ``cpu`` or ``cuda``; ``None`` lets sentence-transformers choose.
        cache_size: Maximum number of embeddings in the cache.
        server: OpenAI-compatible server (for example vLLM) that embeds in place of ``embedder``. If it refuses a text, the
            prediction has no score.
        prompt: Prefix of every text, for an embedder that was trained with a prompt; the default prompt in the embedder's
            folder is not used.
        long_texts: Treatment of texts with more tokens than the embedder reads (``max_seq_length``: 256 for the packaged
            one). ``truncate`` embeds only the beginning. ``windows`` splits the text into parts of about equal length that
            fit and averages their unit vectors. A server has its own setting, such as vLLM's ``truncate_prompt_tokens``.

    Raises:
        ValueError: If ``tau_d`` is outside (0, 2], ``mode`` or ``long_texts`` is unknown, or ``windows`` is used with a
            server.
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
        prompt: str = "",
        long_texts: LongTexts = "truncate",
    ) -> None:
        if not 0 < tau_d <= 2:
            raise ValueError(f"reward.tau_d is {tau_d}; it must be above 0 and at most 2, for example 0.2")
        if mode not in ("threshold", "cosine"):
            raise ValueError(f"reward.mode is {mode!r}; it must be 'threshold' or 'cosine'")
        if long_texts not in ("truncate", "windows"):
            raise ValueError(f"reward.long_texts is {long_texts!r}; it must be 'truncate' or 'windows'")
        if server is not None and long_texts == "windows":
            raise ValueError(
                "reward.long_texts is 'windows', but a server does not split texts; "
                "use reward.embedder instead of reward.server"
            )
        self.embedder = embedder
        self.tau_d = tau_d
        self.mode = mode
        self.batch_size = batch_size
        self.device = device
        self.cache_size = cache_size
        self.success_similarity = 1 - tau_d
        self.server = server
        self.prompt = well_formed(prompt)
        self.long_texts: LongTexts = long_texts
        self._server = None if server is None else EmbeddingServer(server, batch_size)
        self._cache: dict[str, Embedding] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Compute unit vectors of the texts, shape [texts, width]; each distinct text is embedded once and cached.

        Raises:
            RefusedError: If a text gets no vector.
        """
        vectors = [one.vector for one in self._embeddings(texts) if one.vector is not None]
        if len(vectors) < len(texts):
            raise RefusedError(
                f"the embedder gives no vector for {len(texts) - len(vectors)} of {len(texts)} texts"
            )
        return np.stack(vectors)

    def _embeddings(self, texts: Sequence[str]) -> list[Embedding]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > self.cache_size:
            self._cache = {text: self._cache[text] for text in dict.fromkeys(texts) if text in self._cache}
        if missing:
            self._cache.update(zip(missing, self._encode(missing), strict=True))
        return [self._cache[text] for text in texts]

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the parts hold ``distance`` and ``truncated_texts``.

        ``truncated_texts`` counts how many of the two texts (prediction and real next state) were too long for the embedder.
        It is missing with a server, which does not report truncation.
        """
        answered = [i for i, prediction in enumerate(predictions) if prediction is not None]
        scores: Scores = [NO_PREDICTION] * len(predictions)
        texts = [str(predictions[i]) for i in answered] + [transitions[i].next_state for i in answered]
        found = self._embeddings(texts)
        for i, predicted, real in zip(answered, found[: len(answered)], found[len(answered) :], strict=True):
            if predicted.vector is None or real.vector is None:
                scores[i] = None
                continue
            cosine = float((predicted.vector * real.vector).sum())
            parts = {"distance": 1 - cosine}
            if predicted.truncated is not None and real.truncated is not None:
                parts["truncated_texts"] = float(predicted.truncated + real.truncated)
            scores[i] = Score(self.reward(cosine), cosine, True, parts)
        return scores

    def reward(self, cosine: float) -> float:
        """Compute the reward of a cosine similarity."""
        if self.mode == "cosine":
            return max(cosine, 0.0)
        return float(cosine > self.success_similarity)  # the same comparison as in evaluations, bit for bit

    def _encode(self, texts: list[str]) -> list[Embedding]:
        if self._server is None:
            return self._local.encode(texts)
        return [Embedding(v, None) for v in self._server.encode([self.prompt + text for text in texts])]

    @cached_property
    def _local(self) -> SentenceEmbedder:
        return SentenceEmbedder(self._load(), self.embedder, self.batch_size, self.prompt, self.long_texts)

    def _load(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(resolve_model(self.embedder)), device=self.device)
