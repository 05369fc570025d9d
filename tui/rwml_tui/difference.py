"""Word differences between a predicted and a real next state."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.style import StyleType
from rich.text import Text

from rwml_tui.text import visible

MOST_WORDS = 2_000
"""Longest text that is compared, in words, since the time grows with the square of the length; longer texts are not marked."""
_WORD = re.compile(r"\w+|[^\w\s]|\s+")


def mark_differences(
    predicted: str,
    real: str,
    wrong: StyleType = "bold red strike",
    missed: StyleType = "bold green underline",
) -> tuple[Text, Text]:
    """Style the words of each text that the other text does not have at the same place.

    Words are compared in order and without normalization. White space is never marked. The default styles use more than
    colour, so that they are also visible on a terminal without colours.

    Args:
        predicted: Predicted next state.
        real: Real next state.
        wrong: Style of predicted words that are missing in the real text.
        missed: Style of real words that are missing in the prediction.

    Returns:
        The predicted and the real text with styles.
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
