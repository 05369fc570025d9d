"""Confirmation before a run's config is used, because the config decides which code is imported and called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from rwml_tui.text import one_line

_MOST_LISTED = 200


class Trust(ModalScreen[bool]):
    """Asks whether the user trusts a run's config; its result is the answer.

    Args:
        config: The run's config.
        named: Key and value of each named piece of code, weights or server; see :func:`rwml_tui.trust.named_in`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "go on", tooltip="Start model and environment; asked only once until the dashboard ends"),
        Binding("escape,n", "dismiss(False)", "back", key_display="esc", tooltip="Back, nothing is started"),
    ]  # fmt: skip

    def __init__(self, config: Path, named: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        lines = [
            Text(
                "This config starts model and environment with your user's rights. Go on only if you trust its author:"
            ),
            Text("the code that it names is imported, also from this folder, and called."),
            one_line(str(config), 500),
            Text(),
            *(one_line(f"{key}: {value}", 500) for key, value in named[:_MOST_LISTED]),
        ]
        if len(named) > _MOST_LISTED:
            lines.append(Text(f"... and {len(named) - _MOST_LISTED} more"))
        self._text = Static(Text("\n").join(lines), markup=False)

    def compose(self) -> ComposeResult:
        """Yield the text and the footer."""
        with Vertical():
            with VerticalScroll():
                yield self._text
            yield Footer()
