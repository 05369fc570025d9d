"""ROUGE for texts in any script; the default tokenizer of rouge-score keeps only a-z and 0-9, so Russian text has no words."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, Literal

import regex

RougeVariant = Literal["rouge1", "rouge2", "rougeL"]

_UNSPACED = "".join(
    rf"\p{{{script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
_WORD = regex.compile(
    rf"""
    [{_UNSPACED}] \p{{M}}*                              # a character of a script without spaces between words
    | [[\p{{L}}\p{{N}}\p{{M}}] -- [{_UNSPACED}]]+       # letters, digits and the marks on them
    | [\p{{S}} -- [\x00-\x7F]]                          # a symbol outside ASCII, such as an emoji
    """,
    regex.VERSION1 | regex.VERBOSE,
)


def words(text: str) -> list[str]:
    """Split a text into words, in lower case and in Unicode normalization form NFKC.

    A word is a run of letters and digits. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
    Burmese) a word is one character with its marks, as is usual in these languages. A symbol outside ASCII, such
    as an emoji, is a word too. For ASCII text the words equal those of rouge-score.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(folded)


def rouge(prediction: str, real: str, variant: RougeVariant = "rougeL") -> float:
    """Compute the F-measure of ROUGE (Lin 2004) over :func:`words`, without stemming, from 0 to 1.

    Texts with the same words get 1, even if they are too short for a pair of words (``rouge2``). Two texts without words,
    such as "..." and "!", get 1 if they are equal and 0 otherwise.

    Args:
        prediction: Predicted text.
        real: Real text.
        variant: ``rouge1`` and ``rouge2`` count common words and pairs of words, ``rougeL`` the longest common subsequence.
    """
    predicted, expected = words(prediction), words(real)
    if predicted == expected:
        return float(bool(expected) or prediction.split() == real.split())
    return float(_scorer(variant).score(real, prediction)[variant].fmeasure)


class _Words:
    """Adapter of :func:`words` to the tokenizer interface of rouge-score."""

    tokenize = staticmethod(words)


@cache
def _scorer(variant: RougeVariant) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # here because it imports nltk, which takes 0.5 s

    return RougeScorer([variant], tokenizer=_Words())
