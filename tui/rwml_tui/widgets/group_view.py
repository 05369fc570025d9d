"""One group: history and action, what the model predicted, what happened."""

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


def context_text(transition: Transition) -> Text:
    """Task, earlier turns, current state and the action to predict."""
    parts = [visible(transition.task, "italic")]
    for turn in transition.history:
        parts += [
            visible(turn.observation, "dim"),
            Text("> ", "dim").append_text(visible(turn.action, "dim")),
        ]
    parts += [
        visible(transition.observation),
        Text("> ", "bold").append_text(visible(transition.action, "bold")) if transition.action else Text(),
    ]
    return Text("\n").join(part for part in parts if part)


def thinking_text(thinking: str, unfolded: bool) -> Text:
    """The thinking, or what there is of it."""
    if not thinking:
        return Text()
    if unfolded:
        return visible(thinking, "dim italic")
    return Text(f"(thought {len(thinking.split()):,} words; t shows them)", "dim italic")


def prediction_texts(prediction: PredictionRecord, real: str, unfolded: bool) -> tuple[Text, Text]:
    """The predicted and the real pane; the whole answer when it holds no next state."""
    if prediction.next_state is None:
        answer = Text("no <next_state> in this answer:\n", "bold").append_text(
            visible(prediction.text, "dim")
        )
        return answer, visible(real)
    predicted, marked = mark_differences(prediction.next_state, real)
    thinking = thinking_text(prediction.thinking, unfolded)
    return Text("\n").join(part for part in (thinking, predicted) if part), marked


def score_text(prediction: PredictionRecord) -> Text:
    """What one member was worth, in one line."""
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
    """Three panes and a line of numbers about the member that is shown."""

    member: reactive[int] = reactive(0, init=False)
    thinking: reactive[bool] = reactive(False, init=False)

    def __init__(self) -> None:
        super().__init__()
        # Held here, since a message may still come while the app closes and a query finds nothing any more.
        self._score = Static(id="score", markup=False)
        self._situation = TextPane("history and action", id="context")
        self._predicted = TextPane("predicted", id="predicted")
        self._real = TextPane("real", id="real")
        self._transition: Transition | None = None
        self._predictions: list[PredictionRecord] = []

    def compose(self) -> ComposeResult:
        """Numbers above, panes below."""
        yield self._score
        yield Horizontal(self._situation, self._predicted, self._real)

    def show(self, transition: Transition | None, predictions: list[PredictionRecord]) -> None:
        """Shows another group; the place in the group is kept, so that it can be followed through groups."""
        self._transition, self._predictions = transition, predictions
        self._situation.show(Text() if transition is None else context_text(transition))
        kind = f", {transition.kind}" if transition and transition.action else ""
        self._real.border_title = one_line(f"real{kind}")
        self.set_reactive(GroupView.member, min(self.member, max(len(predictions) - 1, 0)))
        self.watch_member()

    def step_member(self, by: int) -> None:
        """Goes to another member, round and round."""
        if self._predictions:
            self.member = (self.member + by) % len(self._predictions)

    @property
    def prediction(self) -> PredictionRecord | None:
        """The member that is shown."""
        return self._predictions[self.member] if self._predictions else None

    def watch_member(self) -> None:
        """Shows the member."""
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
        """Folds or unfolds."""
        self.watch_member()
