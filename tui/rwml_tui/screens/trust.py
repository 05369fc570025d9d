"""Asks before a run's config is used: whoever wrote it names what is imported and called."""

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
    """Gives back whether to go on.

    Args:
        config: The run's config.
        named: Key and value of what it names; see :func:`rwml_tui.trust.named_in`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "go on", tooltip="Start model and environment; not asked again until the dashboard ends"),
        Binding("escape,n", "dismiss(False)", "back", key_display="esc", tooltip="Back, nothing is started"),
    ]  # fmt: skip

    def __init__(self, config: Path, named: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        lines = [
            Text(
                "Model and environment are started as this config says, with your rights. Go on only if you trust"
            ),
            Text("who wrote it: what it names is imported, also from this folder, and called."),
            one_line(str(config), 500),
            Text(),
            *(one_line(f"{key}: {value}", 500) for key, value in named[:_MOST_LISTED]),
        ]
        if len(named) > _MOST_LISTED:
            lines.append(Text(f"... and {len(named) - _MOST_LISTED} more"))
        self._text = Static(Text("\n").join(lines), markup=False)

    def compose(self) -> ComposeResult:
        """What would be run."""
        with Vertical():
            with VerticalScroll():
                yield self._text
            yield Footer()
