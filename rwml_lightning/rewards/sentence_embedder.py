"""A sentence-transformers model for rewards: no hidden prompt, unit vectors, and a warning about texts that are too long."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

LongTexts = Literal["truncate", "windows"]
_LAST_SPACE = re.compile(r"\s\S*\Z")


class Embedding(NamedTuple):
    """Embedding of one text.

    Args:
        vector: Unit vector, float32; ``None`` if the embedder gives no usable vector.
        truncated: Whether the embedder read only a part of the text; ``None`` if unknown.
    """

    vector: np.ndarray | None
    truncated: bool | None


class SentenceEmbedder:
    """Embeds texts.

    Args:
        model: Sentence-transformers model.
        name: Name of the model for messages.
        batch_size: Number of texts per batch.
        prompt: Prefix of every text; the default prompt of the model is never used.
        long_texts: Treatment of a text with more tokens than the model reads. ``truncate`` drops the rest, as
            sentence-transformers does. ``windows`` splits the text into the smallest number of parts of about equal length
            that the model can read, and averages their unit vectors.

    Raises:
        ValueError: If the prompt leaves no room for a text.
    """

    def __init__(
        self, model: SentenceTransformer, name: str, batch_size: int, prompt: str, long_texts: LongTexts
    ) -> None:
        self.model = model
        self.name = name
        self.batch_size = batch_size
        self.prompt = prompt
        self.long_texts = long_texts
        self.max_tokens = _max_tokens(model)
        self._warned = False
        if self.max_tokens is not None:
            (used,) = self._count_tokens([""])
            if used >= self.max_tokens:
                raise ValueError(
                    f"reward.prompt takes {used} tokens, but {name} reads {self.max_tokens}; shorten the prompt"
                )

    def encode(self, texts: Sequence[str]) -> list[Embedding]:
        """Embed texts; a text with a NaN, infinite or zero embedding has no vector."""
        import torch
        from torch.nn.functional import normalize

        counts = [0] * len(texts) if self.max_tokens is None else self._count_tokens(texts)
        long = [self.max_tokens is not None and count > self.max_tokens for count in counts]
        parts = [[text] for text in texts]
        if self.long_texts == "windows":
            for place in [place for place, is_long in enumerate(long) if is_long]:
                parts[place] = self._windows(texts[place], counts[place])
            long = [False] * len(texts)
        elif any(long):
            self._warn_of_truncation(texts[long.index(True)])
        flat = [part for row in parts for part in row]
        found = self.model.encode(
            flat, prompt=self.prompt, batch_size=self.batch_size, show_progress_bar=False
        )
        # In float32, whatever the dtype of the model: in bfloat16 the length of a unit vector is off by 0.2 %.
        vectors = iter(normalize(torch.as_tensor(np.asarray(found, dtype=np.float32)), dim=1).numpy())
        return [
            Embedding(self._usable(text, [next(vectors) for _ in row]), is_long)
            for text, row, is_long in zip(texts, parts, long, strict=True)
        ]

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text without truncation, including the prompt and special tokens."""
        whole = [self.prompt + text for text in texts]
        return [len(ids) for ids in self.model.tokenizer(whole, truncation=False, verbose=False)["input_ids"]]

    def _windows(self, text: str, tokens: int) -> list[str]:
        assert self.max_tokens is not None
        limit = self.max_tokens
        return split_evenly(text, -(-tokens // limit), lambda parts: max(self._count_tokens(parts)) <= limit)

    def _usable(self, text: str, vectors: Sequence[np.ndarray]) -> np.ndarray | None:
        vector = vectors[0] if len(vectors) == 1 else np.sum(vectors, axis=0)
        length = float(np.linalg.norm(vector))
        if not (np.isfinite(length) and length > 0):
            log.warning("%s gives a vector of NaN, infinity or zeros for %r", self.name, text[:80])
            return None
        return vector if len(vectors) == 1 else vector / length

    def _warn_of_truncation(self, text: str) -> None:
        if self._warned:
            return
        self._warned = True
        log.warning(
            "%s reads only the first %d tokens of a text, so the similarity ignores the rest. The first text that is longer "
            "begins with %r. Set the reward's long_texts to windows, or use an embedder with a longer context; "
            "wm/truncated_texts counts these texts",
            self.name, self.max_tokens, text[:80],
        )  # fmt: skip


def split_evenly(text: str, number: int, fit: Callable[[Sequence[str]], bool]) -> list[str]:
    """Split a text into the smallest number of parts of about equal length that all fit, at white space if possible.

    Args:
        text: Text that is longer than one part.
        number: Initial number of parts; it grows until all parts fit.
        fit: Function that returns whether all given parts fit; single characters must fit.
    """
    while not fit(parts := _cut(text, number)):
        number += 1
    return parts


def _cut(text: str, number: int) -> list[str]:
    starts = [0]
    for end in (len(text) * place // number for place in range(1, number)):
        space = _LAST_SPACE.search(text, starts[-1] + 1, end + 1)
        starts.append(space.start() if space else max(end, starts[-1]))
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _max_tokens(model: SentenceTransformer) -> int | None:
    """Return the maximum number of tokens that the model reads; ``None`` without a limit that texts can reach."""
    from transformers import PreTrainedTokenizerBase

    limit = model.max_seq_length
    # The limit is 1e30 for tokenizers without a limit and infinity for static embedders.
    limited = limit is not None and limit < 10**9
    return limit if limited and isinstance(model.tokenizer, PreTrainedTokenizerBase) else None
