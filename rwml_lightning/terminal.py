"""The one console that the library prints to: plain strings are shown as they are, never read as markup or obeyed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from rwml_lightning.printable import printable


class Terminal(Console):
    """A rich console to which every ``str`` (of ``print``, of a table's title, heading or cell) is foreign text.

    Styles are given as arguments or as :class:`rich.text.Text`, which is taken as it is: no foreign text belongs there.

    Args:
        **options: As :class:`rich.console.Console` takes them.

    Example::

        >>> Terminal().print("[bold]\\x1b")
        [bold]\\x1b
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
