"""The dashboard: shows predicted and real next states while the model trains."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Footer, TabbedContent, TabPane

from rwml_lightning.trace import Step, TraceError, TraceReader
from rwml_tui.messages import AskWhatIf, Problem, reported
from rwml_tui.panes.curves import Curves
from rwml_tui.panes.episodes import Episodes
from rwml_tui.panes.predictions import Predictions
from rwml_tui.replay import TICK_SECONDS, Moment, all_steps, moment_at, stride
from rwml_tui.screens.control import Control
from rwml_tui.screens.trust import Trust
from rwml_tui.screens.what_if import WhatIf
from rwml_tui.trust import named_in
from rwml_tui.what_if_process import WhatIfProcess
from rwml_tui.widgets.run_bar import RunBar

REFRESH_SECONDS = 2.0
_PARENT = os.getppid()


def leave_when_orphaned() -> None:
    """Exit at once if the server that shows this dashboard as a page has ended."""
    if os.getppid() != _PARENT:
        # The web driver would read the ended stream for ever. There is nothing to save.
        os._exit(0)


class Dashboard(App[None]):
    """Shows a run and compares it with other runs.

    Args:
        readers: Run stores by name. The first one is shown.
        follow: Whether to check for new records. ``None`` does so if the run is alive.
    """

    CSS_PATH = "app.tcss"
    TITLE = "rwml-tui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "tab('predictions')", "predictions", show=False, tooltip="Predicted next to real next states"),
        Binding("2", "tab('curves')", "curves", show=False, tooltip="Curves of the run"),
        Binding("3", "tab('episodes')", "episodes", show=False, tooltip="Episodes turn by turn"),
        Binding("space", "play", "replay", tooltip="Play the run from its first step, or pause"),
        Binding("comma", "scrub(-1)", "step back", key_display=",", show=False, tooltip="Replay: go back one step"),
        Binding("full_stop", "scrub(1)", "step on", key_display=".", show=False, tooltip="Replay: go forward one step; after the last step the replay ends"),
        Binding("c", "control", "control", tooltip="Checkpoint, pause, continue or stop the run"),
        Binding("f", "follow", "follow", tooltip="Start or stop checking for new records"),
        Binding("d", "dark", "dark or light", show=False, tooltip="Switch between the dark and the light theme"),
        Binding("question_mark", "toggle_help", "help", key_display="?", tooltip="Show or hide the keys that work here"),
        Binding("q", "quit", "quit", tooltip="Quit the dashboard; the run goes on"),
    ]  # fmt: skip

    def __init__(self, readers: Mapping[str, TraceReader], follow: bool | None = None) -> None:
        super().__init__()
        name, self.reader = next(iter(readers.items()))
        self.follow = self.reader.run().alive if follow is None else follow
        self.moment: Moment | None = None
        self._steps: list[Step] = []
        self._playing = False
        self._seen: int | None = None
        self._bar = RunBar(name)
        self._model = WhatIfProcess(self.reader.path.parent)
        self._predictions = Predictions(readers)
        self._curves = Curves(readers)
        self._episodes = Episodes(self.reader)

    def compose(self) -> ComposeResult:
        """Yield the run bar, the tabs and the footer."""
        yield self._bar
        with TabbedContent(initial="predictions"):
            with TabPane("1 predictions", id="predictions"):
                yield self._predictions
            with TabPane("2 curves", id="curves"):
                yield self._curves
            with TabPane("3 episodes", id="episodes"):
                yield self._episodes
        yield Footer()

    async def on_mount(self) -> None:
        """Read the run now and then every two seconds."""
        self._predictions.table.focus()
        await self.refresh_run()
        self.set_interval(REFRESH_SECONDS, self.refresh_run)
        if self.is_web:
            self.set_interval(REFRESH_SECONDS, leave_when_orphaned)
        self._clock = self.set_interval(TICK_SECONDS, self._tick, pause=True)

    async def refresh_run(self) -> None:
        """Read new records; if the run can no longer be read, the screen keeps its last content."""
        try:
            if not self.reader.path.exists():
                raise TraceError(
                    f"{self.reader.path}: the run was deleted; the screen shows the last records read"
                )
            version = self.reader.data_version()
            if self._seen is None or (self.follow and self.moment is None and version != self._seen):
                self._seen = version
                await self._reload()
            self._bar.show(self.reader, self.follow, self.moment, len(self._steps))
        except TraceError as error:
            self._bar.show_error(str(error))

    async def _reload(self) -> None:
        active = self.query_one(TabbedContent).active
        if active == "curves":
            await self._curves.reload()
        elif active == "episodes":
            self._episodes.reload()
        else:
            self._predictions.reload()

    @on(TabbedContent.TabActivated)
    async def show_tab(self) -> None:
        """Read the records of the active tab."""
        with reported(self):
            await self._reload()

    @on(AskWhatIf)
    def show_what_if(self, asked: AskWhatIf) -> None:
        """Open the what-if screen once the run's config is trusted; the first question starts the child process."""
        if self._model.trusted or not self._model.config.is_file():
            self.push_screen(WhatIf(self._model, asked.start))
            return

        def go_on(trusted: bool | None) -> None:
            if trusted:
                self._model.trusted = True
                self.push_screen(WhatIf(self._model, asked.start))

        self.push_screen(Trust(self._model.config, named_in(self._model.config)), go_on)

    async def on_unmount(self) -> None:
        """End the child process that holds the model."""
        await self._model.close()

    @on(Problem)
    def show_problem(self, problem: Problem) -> None:
        """Show the error in the run bar."""
        self._bar.show_error(problem.text)

    def action_tab(self, name: str) -> None:
        """Switch to a tab and focus its main widget."""
        self.query_one(TabbedContent).active = name
        first: dict[str, Widget] = {"predictions": self._predictions.table, "episodes": self._episodes.table}
        first.get(name, self._curves).focus()

    async def action_follow(self) -> None:
        """Start or stop following the run."""
        self.follow = not self.follow
        await self.refresh_run()

    async def action_play(self) -> None:
        """Play or pause the replay; it starts at the first step if no replay is active."""
        if self._playing:
            self._pause()
            return
        with reported(self):
            if all_steps(self.reader):
                if self.moment is None:
                    await self._go_to(0)
                self._playing = True
                self._clock.resume()

    async def action_scrub(self, by: int) -> None:
        """Move the replay by ``by`` steps and pause it."""
        self._pause()
        if self.moment is not None:
            await self._go_to(self.moment.number + by)
        elif by < 0:
            with reported(self):
                await self._go_to(len(all_steps(self.reader)) - 2)

    def _pause(self) -> None:
        self._playing = False
        self._clock.pause()

    async def _tick(self) -> None:
        if self.moment is not None:
            await self._go_to(self.moment.number + stride(len(self._steps)))
        if self.moment is None:
            self._pause()

    async def _go_to(self, number: int) -> None:
        """Show the run as it was after step ``number``, counted over all stages."""
        with reported(self):
            self._steps = all_steps(self.reader)
            here = self.moment = moment_at(self.reader, self._steps, number)
            self._predictions.until = None if here is None else here.last_group
            self._episodes.until = None if here is None else here.last_episode
            self._curves.until = None if here is None else here.step
            await self._reload()
            await self.refresh_run()

    def action_control(self) -> None:
        """Open the screen that sends commands to the trainer."""
        self.push_screen(Control(self.reader))

    def action_dark(self) -> None:
        """Switch between the dark and the light theme."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def action_toggle_help(self) -> None:
        """Show or hide the list of keys."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()
