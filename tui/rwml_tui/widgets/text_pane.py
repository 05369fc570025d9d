"""Scrollable pane with a title and one text."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from rwml_tui.text import one_line


class TextPane(VerticalScroll):
    """Shows a text. The pane can have the focus, so that keys scroll it.

    Args:
        title: Title in the border. It may be untrusted text.
        id: Widget id.
    """

    def __init__(self, title: str, id: str) -> None:
        super().__init__(id=id)
        self.border_title = one_line(title)
        self._text = Static(markup=False)

    def compose(self) -> ComposeResult:
        """Yield the text."""
        yield self._text

    def show(self, text: Text) -> None:
        """Replace the text and scroll to its top."""
        self._text.update(text)
        self.scroll_home(animate=False)
