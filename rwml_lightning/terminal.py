"""The console of the library, which prints strings literally: without markup and without control sequences."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from rwml_lightning.printable import printable


class Terminal(Console):
    """A rich console that treats every ``str`` (in ``print`` or in a table's title, heading or cell) as untrusted text.

    Styles are given as arguments or as :class:`rich.text.Text`, which is printed unchanged and must not hold untrusted text.

    Args:
        **options: Arguments of :class:`rich.console.Console`.

    Example::

        >>> Terminal().print("[bold]\\x1b")
        [bold]\\x1b
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
