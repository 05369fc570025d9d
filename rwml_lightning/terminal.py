"""The console of the library, which prints strings literally: without markup and without control sequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
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


def make_table(title: str, columns: Iterable[str], num_texts: int = 1, **options: Any) -> Table:
    """Make an empty table with folded cells.

    Args:
        title: Title, above the table.
        columns: Headings.
        num_texts: Number of columns of text, which come first and are left-aligned. All others are right-aligned.
        **options: Arguments of :class:`rich.table.Table`.
    """
    table = Table(title=title, title_justify="left", **options)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < num_texts else "right", overflow="fold")
    return table
