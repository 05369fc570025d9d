"""Input line."""

from __future__ import annotations

from textual.widgets import Input

from rwml_lightning.printable import printable


class Line(Input):
    """Input that keeps only printable text, whether it was typed, pasted or set by code."""

    def validate_value(self, value: str) -> str:
        """Escape the characters that are not printable."""
        return printable(value)
