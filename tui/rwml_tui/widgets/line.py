"""A line to type into."""

from __future__ import annotations

from textual.widgets import Input

from rwml_lightning.printable import printable


class Line(Input):
    """An input that holds printable text alone, whoever typed, pasted or proposed it."""

    def validate_value(self, value: str) -> str:
        """The value as it is kept."""
        return printable(value)
