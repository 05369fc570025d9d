"""A sentence-transformers model as a reward uses it: no hidden prompt, unit vectors, and a word about texts too long for it."""

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
    """What an embedder makes of one text.

    Args:
        vector: Unit vector, float32; ``None`` where the embedder gives none that can be used.
        truncated: Whether the embedder read a part of the text only; ``None`` where nobody says.
    """

    vector: np.ndarray | None
    truncated: bool | None


class SentenceEmbedder:
    """Embeds texts.

    Args:
        model: The embedder.
        name: Its name, for messages.
        batch_size: Texts embedded at once.
        prompt: Stands before every text; the model's own default prompt is never used.
        long_texts: What is done with a text of more pieces than the model reads. ``truncate`` drops the rest, as
            sentence-transformers does. ``windows`` splits the text into the fewest parts of about equal length that the model
            can read, and takes the mean of their unit vectors.

    Raises:
        ValueError: The prompt leaves no room for a text.
    """

    def __init__(
        self, model: SentenceTransformer, name: str, batch_size: int, prompt: str, long_texts: LongTexts
    ) -> None:
        self.model = model
        self.name = name
        self.batch_size = batch_size
        self.prompt = prompt
        self.long_texts = long_texts
        self.max_pieces = _max_pieces(model)
        self._warned = False
        if self.max_pieces is not None:
            (used,) = self._count_pieces([""])
            if used >= self.max_pieces:
                raise ValueError(
                    f"reward.prompt takes {used} pieces, but {name} reads {self.max_pieces}; shorten the prompt"
                )

    def encode(self, texts: Sequence[str]) -> list[Embedding]:
        """Embed texts; one that gives NaN, infinity or zeros has no vector."""
        import torch
        from torch.nn.functional import normalize

        pieces = [0] * len(texts) if self.max_pieces is None else self._count_pieces(texts)
        long = [self.max_pieces is not None and count > self.max_pieces for count in pieces]
        parts = [[text] for text in texts]
        if self.long_texts == "windows":
            for place in [place for place, is_long in enumerate(long) if is_long]:
                parts[place] = self._windows(texts[place], pieces[place])
            long = [False] * len(texts)
        elif any(long):
            self._warn_of_truncation(texts[long.index(True)])
        flat = [part for row in parts for part in row]
        found = self.model.encode(
            flat, prompt=self.prompt, batch_size=self.batch_size, show_progress_bar=False
        )
        # In float32, whatever the model computes in: bfloat16 leaves a unit vector's length off by 0.2 %.
        vectors = iter(normalize(torch.as_tensor(np.asarray(found, dtype=np.float32)), dim=1).numpy())
        return [
            Embedding(self._usable(text, [next(vectors) for _ in row]), is_long)
            for text, row, is_long in zip(texts, parts, long, strict=True)
        ]

    def _count_pieces(self, texts: Sequence[str]) -> list[int]:
        """Pieces of each text with the prompt and the tokenizer's special tokens, none dropped."""
        whole = [self.prompt + text for text in texts]
        return [len(ids) for ids in self.model.tokenizer(whole, truncation=False, verbose=False)["input_ids"]]

    def _windows(self, text: str, pieces: int) -> list[str]:
        assert self.max_pieces is not None
        most = self.max_pieces
        return split_evenly(text, -(-pieces // most), lambda parts: max(self._count_pieces(parts)) <= most)

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
            "%s reads %d pieces of a text and drops the rest: what texts end with does not count in their similarity. The first "
            "one that is longer begins with %r. Set the reward's long_texts to windows, or take an embedder that reads more; "
            "wm/truncated_texts counts them",
            self.name, self.max_pieces, text[:80],
        )  # fmt: skip


def split_evenly(text: str, number: int, fit: Callable[[Sequence[str]], bool]) -> list[str]:
    """The fewest parts of about equal length that all fit, cut at white space where there is some.

    Args:
        text: Longer than one part.
        number: Parts to begin with; more are tried until they fit.
        fit: Whether all of some parts fit; single characters do.
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


def _max_pieces(model: SentenceTransformer) -> int | None:
    """Most pieces that the model reads; ``None`` where there is no limit, or none that is ever reached."""
    from transformers import PreTrainedTokenizerBase

    limit = model.max_seq_length
    limited = (
        limit is not None and limit < 10**9
    )  # tokenizers without a limit say 1e30, static embedders infinity
    return limit if limited and isinstance(model.tokenizer, PreTrainedTokenizerBase) else None
