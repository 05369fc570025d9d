"""Model and environment text made safe for a terminal: control characters are shown as escapes and never obeyed."""

from __future__ import annotations

from rich.text import Text

from rwml_lightning.printable import split_hidden

LIMIT = 20_000


def visible(text: str, style: str = "", limit: int = LIMIT) -> Text:
    """Convert a string to text without markup.

    Every control character, text-direction mark and lone surrogate is shown as its escape, such as ``\\x1b``. Beyond
    ``limit`` characters only the number of further characters is shown.
    """
    shown = Text(style=style)
    for part, hidden in split_hidden(text[:limit]):
        shown.append(part, "reverse" if hidden else None)
    if len(text) > limit:
        shown.append(f" ... {len(text) - limit:,} more characters", "italic")
    return shown


def one_line(text: str, limit: int = 60, style: str = "") -> Text:
    """Convert a string as :func:`visible` does, for a table cell, a border title or a line."""
    return visible(text.replace("\n", "⏎"), style, limit)


def age(seconds: float) -> str:
    """Format a duration in one unit: ``3 s``, ``5 min``, ``2 h``, ``4 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
