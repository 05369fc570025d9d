"""Model and environment text as a terminal may show it: control characters are shown, never obeyed."""

from __future__ import annotations

import re
import unicodedata

from rich.text import Text

LIMIT = 20_000
JOINERS = "\u200c\u200d"  # emoji and several scripts are written with them


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS


def visible(text: str, style: str = "", limit: int = LIMIT) -> Text:
    """Text without markup in which every control character, text-direction mark and lone surrogate stands as its
    escape, such as ``\\x1b``; what goes beyond ``limit`` characters is counted instead of shown.
    """
    shown = Text(style=style)
    for place, part in enumerate(re.split(r"([^\n -~])", text[:limit])):
        odd = place % 2 == 1  # one character that is not printable ASCII
        shown.append(*((repr(part)[1:-1], "reverse") if odd and _hidden(part) else (part,)))
    if len(text) > limit:
        shown.append(f" ... {len(text) - limit:,} more characters", "italic")
    return shown


def one_line(text: str, limit: int = 60) -> Text:
    """The same for a cell of a table."""
    return visible(text.replace("\n", "⏎"), limit=limit)


def age(seconds: float) -> str:
    """Seconds as a person says them: ``3 s``, ``5 min``, ``2 h``, ``4 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
