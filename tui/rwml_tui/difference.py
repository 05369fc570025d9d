"""Which words of a prediction are not in reality, and which of reality it left out."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.style import StyleType
from rich.text import Text

from rwml_tui.text import visible

MOST_WORDS = 2_000
"""Matching takes time with the square of the length; longer texts are shown without differences."""
_WORD = re.compile(r"\w+|[^\w\s]|\s+")


def mark_differences(
    predicted: str,
    real: str,
    wrong: StyleType = "bold red strike",
    missed: StyleType = "bold green underline",
) -> tuple[Text, Text]:
    """Both texts, with the words styled that the other has not, in order.

    Words are compared as they stand; white space is never marked. Styles carry more than colour, so that a terminal
    without colours shows them too.

    Args:
        predicted: Predicted next state.
        real: Real next state.
        wrong: Style of predicted words that are not real.
        missed: Style of real words that were not predicted.
    """
    left, right = _WORD.findall(predicted), _WORD.findall(real)
    if len(left) > MOST_WORDS or len(right) > MOST_WORDS:
        return visible(predicted), visible(real)
    texts = Text(), Text()
    for tag, start, end, other_start, other_end in SequenceMatcher(
        None, left, right, autojunk=False
    ).get_opcodes():
        for text, words, style in zip(
            texts, (left[start:end], right[other_start:other_end]), (wrong, missed), strict=True
        ):
            for word in words:
                shown = visible(word)
                if tag != "equal" and not word.isspace():
                    shown.stylize(style)
                text.append_text(shown)
    return texts
