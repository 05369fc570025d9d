"""A titled pane that scrolls one text."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from rwml_tui.text import one_line


class TextPane(VerticalScroll):
    """Shows a text; takes the focus, so that keys can scroll it.

    Args:
        title: Written into the border; may be anybody's words.
        id: Widget id.
    """

    def __init__(self, title: str, id: str) -> None:
        super().__init__(id=id)
        self.border_title = one_line(title)
        self._text = Static(markup=False)

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._text

    def show(self, text: Text) -> None:
        """Replaces the text and goes back to its top."""
        self._text.update(text)
        self.scroll_home(animate=False)
