"""Text with control sequences and markup, and a check that none of them reaches the screen."""

from __future__ import annotations

import unicodedata

HOSTILE = (
    "\x1b]52;c;cm0gLXJm\x07 \x1b]0;title\x1b\\ \x1b[31;5m \x9b2J \x9d0;t\x9c \x00 \x08 \x7f \r \t "
    "\u202eevil\u2066 \u2028 \ud800 [@click=app.quit]x[/] [bold]b [link=https://example.org]l [/] [/nonsense] \\[ :bomb: \\"
)
"""Text with sequences that a terminal, rich or Textual executes.

Among them are clipboard, title, colours, C1 controls, text direction, links, actions and markup.
"""


def assert_harmless(shown: str) -> None:
    """Assert that a text has no control characters that a terminal would execute."""
    odd = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set(
        "\n\u200c\u200d"
    )
    assert not odd, sorted(odd)
