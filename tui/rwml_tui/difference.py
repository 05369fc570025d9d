"""Word differences between a predicted and a real next state."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.text import Text

from rwml_tui.text import visible

MOST_WORDS = 2_000
"""Longest text that is compared, in words, since the time grows with the square of the length; longer texts are not marked."""
# More than a colour, so that the marks are also visible on a terminal without colours.
WRONG, MISSED = "bold red strike", "bold green underline"
_WORD = re.compile(r"\w+|[^\w\s]|\s+")


def mark_differences(predicted: str, real: str) -> tuple[Text, Text]:
    """Style the words of each text that the other text does not have at the same place.

    Words are compared in order and without normalization. White space is never marked.

    Args:
        predicted: Predicted next state.
        real: Real next state.

    Returns:
        The predicted and the real text with styles.
    """
    left, right = _WORD.findall(predicted), _WORD.findall(real)
    if len(left) > MOST_WORDS or len(right) > MOST_WORDS:
        return visible(predicted), visible(real)
    texts = Text(), Text()
    opcodes = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    for tag, start, end, other_start, other_end in opcodes:
        parts = (left[start:end], right[other_start:other_end])
        for text, words, style in zip(texts, parts, (WRONG, MISSED), strict=True):
            for word in words:
                shown = visible(word)
                if tag != "equal" and not word.isspace():
                    shown.stylize(style)
                text.append_text(shown)
    return texts
