"""Screen that exports groups to a file."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, RadioButton, RadioSet, Static

from rwml_lightning.trace import TraceError
from rwml_tui.formats import FORMATS, export
from rwml_tui.text import one_line
from rwml_tui.widgets.line import Line


class Export(ModalScreen[str | None]):
    """Asks which groups to write and to which file; its result is a message about the written file.

    Args:
        database: Run store.
        listed: Ids of the groups of the list, in order.
        selected: Id of the group under the cursor.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "back", key_display="esc", tooltip="Back, nothing is written"),
    ]

    def __init__(self, database: Path, listed: array[int], selected: int) -> None:
        super().__init__()
        self.database, self.listed, self.selected = database, listed, selected
        self._file = Line(f"{database.resolve().parent.name}-groups.jsonl", id="file")
        self._problem = Static(markup=False, id="problem")

    def compose(self) -> ComposeResult:
        """Yield the choice of groups, the file name and the message line."""
        with Vertical():
            with RadioSet(id="which"):
                yield RadioButton("the group under the cursor", value=True)
                yield RadioButton(f"all {len(self.listed):,} groups of the list")
            yield Static(f"File to write ({', '.join(FORMATS)}). Enter writes it.", markup=False)
            yield self._file
            yield self._problem
            yield Footer()

    def on_mount(self) -> None:
        """Focus the choice of groups."""
        self.query_one(RadioSet).focus()

    @on(Input.Submitted)
    def begin(self) -> None:
        """Write the file in a thread, so that the screen stays responsive."""
        self._problem.update("writing ...")
        everything = self.query_one(RadioSet).pressed_index == 1
        self._write(
            self.listed if everything else array("q", [self.selected]), Path(self._file.value).expanduser()
        )

    @work(thread=True, exclusive=True, group="export")
    def _write(self, ids: array[int], output: Path) -> None:
        try:
            export(self.database, ids, output)
        except (ValueError, OSError, TraceError) as error:
            self.app.call_from_thread(self._problem.update, one_line(str(error), 300))
            return
        self.app.call_from_thread(self.dismiss, f"wrote {len(ids):,} groups to {output}")
