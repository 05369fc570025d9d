"""ROUGE for texts in any script; rouge-score's own words are runs of a-z and 0-9, so that a Russian text has none."""

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
    [{_UNSPACED}] \p{{M}}*                              # a character of a script that puts no space between words
    | [[\p{{L}}\p{{N}}\p{{M}}] -- [{_UNSPACED}]]+       # letters, digits and the marks on them
    | [\p{{S}} -- [\x00-\x7F]]                          # a symbol such as an emoji; those of ASCII do not count
    """,
    regex.VERSION1 | regex.VERBOSE,
)


def words(text: str) -> list[str]:
    """Words of a text, in lower case and in Unicode's compatible composed form.

    A word is a run of letters and digits. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
    Burmese) it is one character with its marks, as is usual there. A symbol outside ASCII, such as an emoji, is a word too.
    Of an ASCII text these are the words of rouge-score.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(folded)


def rouge(prediction: str, real: str, variant: RougeVariant = "rougeL") -> float:
    """F-measure of ROUGE (Lin 2004) over :func:`words`, not stemmed, from 0 to 1.

    Texts with the same words get 1, also where they have too few for a pair (``rouge2``). Of two texts without any word,
    such as "..." and "!", equal ones get 1 and others 0.

    Args:
        prediction: Predicted text.
        real: What it should be.
        variant: ``rouge1`` and ``rouge2`` count common words and pairs of words, ``rougeL`` the longest common subsequence.
    """
    predicted, expected = words(prediction), words(real)
    if predicted == expected:
        return float(bool(expected) or prediction.split() == real.split())
    return float(_scorer(variant).score(real, prediction)[variant].fmeasure)


class _Words:
    """:func:`words` as rouge-score wants a tokenizer."""

    tokenize = staticmethod(words)


@cache
def _scorer(variant: RougeVariant) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: half a second that only its users pay

    return RougeScorer([variant], tokenizer=_Words())
