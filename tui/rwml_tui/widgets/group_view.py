"""View of one group: history and action, predicted and real next state."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.reactive import reactive
from textual.widgets import Static

from rwml_lightning.schema import Transition
from rwml_lightning.trace import PredictionRecord
from rwml_tui.difference import mark_differences
from rwml_tui.text import one_line, visible
from rwml_tui.widgets.text_pane import TextPane


def action_text(action: str, style: str) -> Text:
    """Format an action after a prompt sign."""
    return Text("> ", style).append_text(visible(action, style))


def context_text(transition: Transition) -> Text:
    """Format task, earlier turns, current state and the action whose next state is predicted."""
    parts = [visible(transition.task, "italic")]
    for turn in transition.history:
        parts += [visible(turn.observation, "dim"), action_text(turn.action, "dim")]
    parts += [visible(transition.observation)]
    parts += [action_text(transition.action, "bold")] if transition.action else []
    return Text("\n").join(part for part in parts if part)


def thinking_text(thinking: str, unfolded: bool) -> Text:
    """Format the thinking, or only its number of words while it is folded."""
    if not thinking:
        return Text()
    if unfolded:
        return visible(thinking, "dim italic")
    return Text(f"(thought {len(thinking.split()):,} words; t shows them)", "dim italic")


def prediction_texts(prediction: PredictionRecord, real: str, unfolded: bool) -> tuple[Text, Text]:
    """Format the predicted and the real text; an answer without a next state is shown completely."""
    if prediction.next_state is None:
        answer = Text("no <next_state> in this answer:\n", "bold").append_text(
            visible(prediction.text, "dim")
        )
        return answer, visible(real)
    predicted, marked = mark_differences(prediction.next_state, real)
    thinking = thinking_text(prediction.thinking, unfolded)
    return Text("\n").join(part for part in (thinking, predicted) if part), marked


def score_text(prediction: PredictionRecord) -> Text:
    """Format the similarity, reward, advantage and other numbers of one member, in one line."""
    similarity = "-" if prediction.similarity is None else f"{prediction.similarity:.3f}"
    line = Text(
        f"similarity {similarity}  reward {prediction.reward:g}  advantage {prediction.advantage:+.2f}  "
        f"{prediction.tokens} tokens{', cut off' if prediction.finish_reason == 'length' else ''}  "
        f"policy {prediction.policy_version}"
    )
    for name, value in prediction.parts.items():
        line.append("  ").append_text(one_line(name)).append(f" {value:.3g}")
    return line


class GroupView(Vertical):
    """Shows one member of a group in three panes, with a line of its numbers."""

    member: reactive[int] = reactive(0, init=False)
    thinking: reactive[bool] = reactive(False, init=False)

    def __init__(self) -> None:
        super().__init__()
        # Kept as attributes: while the app closes, a message may still arrive when queries already find nothing.
        self._score = Static(id="score", markup=False)
        self._situation = TextPane("history and action", id="context")
        self._predicted = TextPane("predicted", id="predicted")
        self._real = TextPane("real", id="real")
        self._transition: Transition | None = None
        self._predictions: list[PredictionRecord] = []

    def compose(self) -> ComposeResult:
        """Yield the line of numbers and the panes."""
        yield self._score
        yield Horizontal(self._situation, self._predicted, self._real)

    def show(self, transition: Transition | None, predictions: list[PredictionRecord]) -> None:
        """Show another group and keep the member index, so that one member can be followed through groups."""
        self._transition, self._predictions = transition, predictions
        self._situation.show(Text() if transition is None else context_text(transition))
        kind = f", {transition.kind}" if transition and transition.action else ""
        self._real.border_title = one_line(f"real{kind}")
        self.set_reactive(GroupView.member, min(self.member, max(len(predictions) - 1, 0)))
        self.watch_member()

    def step_member(self, by: int) -> None:
        """Go to another member; after the last one comes the first."""
        if self._predictions:
            self.member = (self.member + by) % len(self._predictions)

    @property
    def prediction(self) -> PredictionRecord | None:
        """Prediction of the member that is shown."""
        return self._predictions[self.member] if self._predictions else None

    def watch_member(self) -> None:
        """Show the member."""
        one = self.prediction
        real = "" if self._transition is None else self._transition.next_state
        if one is None:
            self._predicted.border_title = "predicted"
            self._score.update("")
            self._predicted.show(Text())
            self._real.show(visible(real))
            return
        predicted, marked = prediction_texts(one, real, self.thinking)
        self._predicted.border_title = f"predicted {self.member + 1}/{len(self._predictions)}"
        self._score.update(score_text(one))
        self._predicted.show(predicted)
        self._real.show(marked)

    def watch_thinking(self) -> None:
        """Show the member again, with its thinking folded or unfolded."""
        self.watch_member()
