"""An embedder on an OpenAI-compatible server, for example ``vllm serve MODEL --runner pooling``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from rwml_lightning.rewards.server import NoAnswerError, RefusedError, Request, Server, ServerClient

log = logging.getLogger(__name__)


class EmbeddingServer:
    """Embeds texts with the endpoint ``/v1/embeddings``.

    Args:
        server: Server of the embedder.
        batch_size: Number of texts per request.
    """

    def __init__(self, server: Server, batch_size: int) -> None:
        self.batch_size = batch_size
        self._client = ServerClient(server)
        self._width: int | None = None

    def encode(self, texts: Sequence[str], batch_size: int | None = None) -> list[np.ndarray | None]:
        """Compute unit vectors of the texts; ``None`` for a text that the server refuses.

        Raises:
            ServerError: If the server is down for too long, or gives no usable response after all retries.
        """
        batch_size = batch_size or self.batch_size
        batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        requests = [Request(partial(_body, batch), partial(self._read, len(batch))) for batch in batches]
        vectors: list[np.ndarray | None] = []
        for batch, answer in zip(batches, self._client.ask("embeddings", requests), strict=True):
            match answer:
                case RefusedError() if len(batch) > 1:  # probably because of one text: send each alone
                    vectors += self.encode(batch, 1)
                case RefusedError():
                    log.warning("%s; the text begins with %r", answer, batch[0][:80])
                    vectors.append(None)
                case NoAnswerError():
                    raise answer
                case _:
                    vectors += list(answer)
        return vectors

    def _read(self, count: int, body: Any) -> np.ndarray:
        vectors = read_embeddings(body, count)
        if self._width not in (None, vectors.shape[1]):
            raise ValueError(f"vectors of {vectors.shape[1]} numbers, but earlier vectors had {self._width}")
        self._width = vectors.shape[1]
        return vectors


def _body(texts: Sequence[str], failures: int) -> dict[str, list[str]]:
    return {"input": list(texts)}


def read_embeddings(body: Any, count: int) -> np.ndarray:
    """Read unit vectors from a response, shape [count, width], float32, in the order of the request.

    Args:
        body: JSON of the response.
        count: Number of texts in the request.

    Raises:
        ValueError: If the number of vectors is not ``count``, or an entry is not a vector.
    """
    match body:
        case {"data": [*rows]} if all(
            isinstance(r, dict) and isinstance(r.get("index", 0), int) for r in rows
        ):
            by_index = {row.get("index", place): row.get("embedding") for place, row in enumerate(rows)}
        case _:
            raise ValueError("no list of vectors in data")
    if len(rows) != count or by_index.keys() != set(range(count)):
        raise ValueError(f"{len(rows)} vectors for {count} texts")
    try:
        vectors = np.asarray([by_index[place] for place in range(count)], dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError("vectors of different lengths, or with entries that are not numbers") from None
    if vectors.ndim != 2:
        raise ValueError("an embedding that is not a list of numbers")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("a vector of NaN, infinity or zeros")
    return vectors / lengths
