"""The dashboard: predicted next to real, while the model trains."""

from __future__ import annotations

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.widgets import Footer

from rwml_lightning.trace import GroupQuery, TraceError, TraceReader
from rwml_tui.widgets.group_table import GroupTable
from rwml_tui.widgets.group_view import GroupView
from rwml_tui.widgets.run_bar import RunBar

REFRESH_SECONDS = 2.0
NUM_ROWS = 300


class Dashboard(App[None]):
    """Shows one run.

    Args:
        reader: Its run store.
        follow: Whether to look for new records; while the run is alive when ``None``.
    """

    CSS_PATH = "app.tcss"
    TITLE = "rwml-tui"
    BINDINGS = [  # noqa: RUF012 - Textual reads it from the class
        Binding("n", "member(1)", "next member", tooltip="Show the next prediction of this group"),
        Binding("p", "member(-1)", "previous member", tooltip="Show the prediction before"),
        Binding("f", "follow", "follow", tooltip="Look for new records, or stop it"),
        Binding("q", "quit", "quit", tooltip="Leave; the run goes on"),
    ]

    def __init__(self, reader: TraceReader, follow: bool | None = None) -> None:
        super().__init__()
        self.reader = reader
        self.follow = reader.run().alive if follow is None else follow
        self._seen: int | None = None
        self._bar, self._table, self._view = RunBar(markup=False), GroupTable(), GroupView()

    def compose(self) -> ComposeResult:
        """State, list, group, keys."""
        yield self._bar
        yield self._table
        yield self._view
        yield Footer()

    def on_mount(self) -> None:
        """First look, then a look every two seconds."""
        self.refresh_run()
        self._table.focus()
        self.set_interval(REFRESH_SECONDS, self.refresh_run)

    def refresh_run(self) -> None:
        """Reads what was recorded since; a run that can no longer be read stays on the screen as it was."""
        try:
            if not self.reader.path.exists():
                raise TraceError(f"{self.reader.path}: the run was deleted; what is shown was read before")
            version = self.reader.data_version()
            if self._seen is None or (self.follow and version != self._seen):
                groups = self.reader.groups(GroupQuery(), limit=NUM_ROWS)
                self._table.show(groups, self.reader.count_groups())
                self._seen = version
            self._bar.show(self.reader, self.follow)
        except TraceError as error:
            self._bar.complain(str(error))

    @on(GroupTable.RowHighlighted)
    def show_group(self) -> None:
        """Shows the group under the cursor."""
        group_id = self._table.selected
        try:
            detail = None if group_id is None else self.reader.group(group_id)
            predictions = [] if group_id is None else self.reader.predictions(group_id)
            self._view.show(detail, predictions)
        except TraceError as error:
            self._bar.complain(str(error))

    def action_member(self, by: int) -> None:
        """Steps through the group."""
        self._view.step_member(by)

    def action_follow(self) -> None:
        """Starts or stops following."""
        self.follow = not self.follow
        self.refresh_run()
