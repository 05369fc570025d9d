"""The dashboard: predicted next to real, while the model trains."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, TabbedContent, TabPane

from rwml_lightning.trace import TraceError, TraceReader
from rwml_tui.messages import Problem
from rwml_tui.panes.curves import Curves
from rwml_tui.panes.predictions import Predictions
from rwml_tui.screens.control import Control
from rwml_tui.widgets.run_bar import RunBar

REFRESH_SECONDS = 2.0


class Dashboard(App[None]):
    """Shows one run.

    Args:
        reader: Its run store.
        follow: Whether to look for new records; while the run is alive when ``None``.
    """

    CSS_PATH = "app.tcss"
    TITLE = "rwml-tui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "1", "tab('predictions')", "predictions", show=False, tooltip="Predicted next to real next states"
        ),
        Binding("2", "tab('curves')", "curves", show=False, tooltip="Curves of the run"),
        Binding("c", "control", "control", tooltip="Checkpoint, pause, continue or stop the run"),
        Binding("f", "follow", "follow", tooltip="Look for new records, or stop it"),
        Binding("question_mark", "toggle_help", "help", key_display="?", tooltip="All keys that work here"),
        Binding("q", "quit", "quit", tooltip="Leave; the run goes on"),
    ]

    def __init__(self, reader: TraceReader, follow: bool | None = None) -> None:
        super().__init__()
        self.reader = reader
        self.follow = reader.run().alive if follow is None else follow
        self._seen: int | None = None
        self._bar = RunBar(markup=False)
        self._predictions = Predictions(reader)
        self._curves = Curves({reader.path.resolve().parent.name: reader})

    def compose(self) -> ComposeResult:
        """State, tabs, keys."""
        yield self._bar
        with TabbedContent(initial="predictions"):
            with TabPane("1 predictions", id="predictions"):
                yield self._predictions
            with TabPane("2 curves", id="curves"):
                yield self._curves
        yield Footer()

    async def on_mount(self) -> None:
        """First look, then a look every two seconds."""
        self._predictions.table.focus()
        await self.refresh_run()
        self.set_interval(REFRESH_SECONDS, self.refresh_run)

    async def refresh_run(self) -> None:
        """Reads what was recorded since; a run that can no longer be read stays on the screen as it was."""
        try:
            if not self.reader.path.exists():
                raise TraceError(f"{self.reader.path}: the run was deleted; what is shown was read before")
            version = self.reader.data_version()
            if self._seen is None or (self.follow and version != self._seen):
                self._seen = version
                await self._look()
            self._bar.show(self.reader, self.follow)
        except TraceError as error:
            self._bar.complain(str(error))

    async def _look(self) -> None:
        if self.query_one(TabbedContent).active == "curves":
            await self._curves.look()
        else:
            self._predictions.look()

    @on(TabbedContent.TabActivated)
    async def show_tab(self) -> None:
        """Reads what the tab shows."""
        await self._look()

    @on(Problem)
    def show_problem(self, problem: Problem) -> None:
        """Says what went wrong, in the bar."""
        self._bar.complain(problem.text)

    def action_tab(self, name: str) -> None:
        """To a tab."""
        self.query_one(TabbedContent).active = name
        pane = self.query_one(f"TabPane#{name}")
        target = next((widget for widget in pane.query("*") if widget.focusable), None)
        if target is not None:
            target.focus()

    async def action_follow(self) -> None:
        """Starts or stops following."""
        self.follow = not self.follow
        await self.refresh_run()

    def action_control(self) -> None:
        """Asks something of the trainer."""
        self.push_screen(Control(self.reader))

    def action_toggle_help(self) -> None:
        """Shows or hides the keys."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()
