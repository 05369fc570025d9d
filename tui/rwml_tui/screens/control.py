"""Commands to a running trainer, and its answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from rwml_lightning.trace import Command, CommandName, TraceError, TraceReader
from rwml_tui.messages import reported
from rwml_tui.text import age, one_line

CHOICES: Mapping[CommandName, str] = {
    "checkpoint": "save a checkpoint now",
    "pause": "pause after this step",
    "continue": "go on after a pause",
    "stop": "stop after this step; the same command goes on from there",
}
_POLL_SECONDS = 0.5


def command_text(command: Command, now: float) -> Text:
    """Format a command and the trainer's answer, in one line."""
    answer = "not heard yet" if command.acknowledged is None else f"heard: {command.answer}"
    name = one_line(command.command)
    name.pad_right(max(10 - name.cell_len, 0))
    line = Text(f"{age(now - command.time):>6} ago  ").append_text(name).append("  ")
    return line.append_text(one_line(answer, 120))


class Control(ModalScreen[None]):
    """Sends commands to the trainer: Enter chooses, a second Enter confirms. The trainer's answers are listed below.

    Args:
        reader: The run.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape,c", "leave", "back", key_display="esc", tooltip="Back; a command that was sent stays sent"
        ),
    ]

    def __init__(self, reader: TraceReader) -> None:
        super().__init__()
        self.reader = reader
        self.asked: CommandName | None = None
        self._options = OptionList(
            *(Option(f"{name}: {what}", id=name) for name, what in CHOICES.items()), markup=False
        )
        self._question = Static(markup=False, id="question")
        self._answers = Static(markup=False, id="answers")

    def compose(self) -> ComposeResult:
        """Yield the commands, the question and the answers."""
        with Vertical():
            yield self._options
            yield self._question
            yield self._answers
            yield Footer()

    def on_mount(self) -> None:
        """Show the answers and read them again twice a second."""
        self._ask(None)
        self._reload()
        self.set_interval(_POLL_SECONDS, self._reload)

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Ask for confirmation; the second Enter sends the command."""
        name: CommandName = event.option_id  # type: ignore[assignment]
        if self.asked != name:
            self._ask(name)
            return
        self._ask(None)
        try:
            self.reader.send_command(name)
        except TraceError as error:
            self._question.update(one_line(str(error), 300))
        self._reload()

    @on(OptionList.OptionHighlighted)
    def reconsider(self) -> None:
        """Withdraw the question when another command is highlighted."""
        self._ask(None)

    def action_leave(self) -> None:
        """Withdraw the question, or leave the screen if there is none."""
        if self.asked is None:
            self.dismiss()
        else:
            self._ask(None)

    def _ask(self, name: CommandName | None) -> None:
        self.asked = name
        alive = False
        with reported(self):
            alive = self.reader.run().alive
        idle = "Enter chooses." if alive else "This run has ended: nobody will hear a command."
        self._question.update(
            idle if name is None else f"Really {CHOICES[name]}? Enter again sends it, Esc takes it back."
        )

    def _reload(self) -> None:
        now = time.time()
        try:
            commands = self.reader.commands(8)
        except TraceError as error:
            self._answers.update(one_line(str(error), 300))
            return
        self._answers.update(Text("\n").join(command_text(command, now) for command in commands))
