"""What if: the user types an action, and sees the model's prediction and the real next state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from rwml_lightning.printable import printable
from rwml_tui.text import one_line
from rwml_tui.what_if_process import Outcome, Scene, WhatIfError, WhatIfProcess
from rwml_tui.widgets.group_view import GroupView
from rwml_tui.widgets.line import Line

_MOST_LISTED = 200


class WhatIf(ModalScreen[None]):
    """Shows a state, its admissible actions, and the predicted and real next state after an action.

    Args:
        process: Client of the child process with model and environment.
        start: First question; its answer is the first state.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "type", "action", key_display="/", tooltip="Type an action; Enter predicts and executes it"),
        Binding("n", "member(1)", "member", tooltip="Show the next prediction"),
        Binding("p", "member(-1)", "previous", show=False, tooltip="Show the previous prediction"),
        Binding("t", "thinking", "thinking", tooltip="Unfold what the model thought, or fold it"),
        Binding("g", "go_on", "go on", tooltip="Go on to the state after the action"),
        Binding("b", "go_back", "go back", tooltip="Go back to the state one turn earlier"),
        Binding("r", "new_game", "new game", tooltip="Begin another game, held-out ones first"),
        Binding("escape", "leave", "back", key_display="esc", tooltip="Back; the model stays loaded until the dashboard ends"),
    ]  # fmt: skip

    def __init__(self, process: WhatIfProcess, start: Mapping[str, Any]) -> None:
        super().__init__()
        self.process, self.start = process, start
        self.scene: Scene | None = None
        self.outcome: Outcome | None = None
        self._game = 0
        self._listed: list[str] = []
        self._state = Static(markup=False, id="state")
        self._view = GroupView()
        self._line = Line(placeholder="an action, for example: open drawer 1", compact=True, id="action")
        self._actions = OptionList(id="admissible", markup=False, compact=True)

    def compose(self) -> ComposeResult:
        """Yield the state line, the panes, the input line and the list of actions."""
        with Vertical():
            yield self._state
            yield self._view
            yield self._line
            yield self._actions
            yield Footer()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable the action key while the input line has the focus, where it is a character."""
        return action != "type" or not self._line.has_focus

    def on_mount(self) -> None:
        """Focus the input line and ask for the first state."""
        self._line.focus()
        self._ask(self.start)

    @work(exclusive=True, group="what_if")
    async def _ask(self, question: Mapping[str, Any]) -> None:
        self._show_message("asking the model and the environment" if self.process.weights else "starting")
        try:
            scene, outcome = await self.process.ask(question, self._show_message)
        except WhatIfError as error:
            self._state.update(Text("not answered: ", "bold").append_text(one_line(str(error), 500)))
            self._state.add_class("problem")
            return
        self.scene, self.outcome = scene, outcome
        self._show(scene, outcome)

    def _show(self, scene: Scene, outcome: Outcome | None) -> None:
        shown = scene.state if outcome is None else outcome.transition
        self._view.show(shown, [] if outcome is None else outcome.predictions)
        turns = len(scene.place["actions"])
        self._show_message(
            f"turn {turns + 1}{', the episode is over' if scene.over else ''}  {scene.place['game']}  "
            f"weights {self.process.weights}"
        )
        self._list(self._line.value)
        if outcome is None:
            self._line.value = ""
            self._line.focus()
        else:
            self._view.query_one("#predicted").focus()

    def _show_message(self, text: str) -> None:
        self._state.remove_class("problem")
        self._state.update(one_line(text, 500))

    @on(Input.Changed, "#action")
    def narrow(self, event: Input.Changed) -> None:
        """List the admissible actions that contain the typed words."""
        self._list(event.value)

    def _list(self, typed: str) -> None:
        words = typed.lower().split()
        found = [action for action in self._named() if all(word in action.lower() for word in words)]
        self._listed = found[:_MOST_LISTED]
        self._actions.clear_options()
        self._actions.add_options(Option(one_line(action, 200)) for action in self._listed)

    def _named(self) -> dict[str, str]:
        """Map the printable form of each admissible action to the action."""
        return {} if self.scene is None else {printable(action): action for action in self.scene.admissible}

    @on(Input.Submitted, "#action")
    def act(self) -> None:
        """Predict the typed action and execute it."""
        if self.scene is not None and self._line.value.strip():
            action = self._named().get(self._line.value, self._line.value)
            self._ask({"place": self.scene.place, "action": action})

    @on(OptionList.OptionSelected, "#admissible")
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Predict and execute an action of the list."""
        self._line.value = self._listed[event.option_index]
        self.act()

    def action_type(self) -> None:
        """Focus the input line."""
        self._line.focus()

    def action_member(self, by: int) -> None:
        """Go to another prediction."""
        self._view.step_member(by)

    def action_thinking(self) -> None:
        """Fold or unfold the thinking."""
        self._view.thinking = not self._view.thinking

    def action_go_on(self) -> None:
        """Go on to the state after the action."""
        if self.scene is not None and self.outcome is not None:
            self._ask({"place": self.scene.after(self.outcome.transition.action)})

    def action_go_back(self) -> None:
        """Go back one turn."""
        if self.scene is not None:
            self._ask({"place": self.scene.before()})

    def action_new_game(self) -> None:
        """Begin another game."""
        self._ask({"begin": self._game})
        self._game += 1

    def action_leave(self) -> None:
        """Leave the input line if there is an outcome to show, else leave the screen."""
        if self._line.has_focus and self.outcome is not None:
            self._view.query_one("#predicted").focus()
        else:
            self.dismiss()
