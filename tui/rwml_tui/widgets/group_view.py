"""One group: history and action, what the model foresaw, what happened."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.reactive import reactive
from textual.widgets import Static

from rwml_lightning.schema import Transition
from rwml_lightning.trace import GroupDetail, PredictionRecord
from rwml_tui.text import visible
from rwml_tui.widgets.text_pane import TextPane


def context_text(transition: Transition) -> Text:
    """Task, earlier turns, current state and the action whose outcome is to be foreseen."""
    parts = [visible(transition.task, "italic")]
    for turn in transition.history:
        parts += [
            visible(turn.observation, "dim"),
            Text("> ", "dim").append_text(visible(turn.action, "dim")),
        ]
    parts += [
        visible(transition.observation),
        Text("> ", "bold").append_text(visible(transition.action, "bold")),
    ]
    return Text("\n").join(part for part in parts if part)


def prediction_text(prediction: PredictionRecord) -> Text:
    """Thinking, dimmed, then the predicted state; the whole answer when it holds none."""
    if prediction.next_state is None:
        return Text("no <next_state> in this answer:\n", "bold").append_text(visible(prediction.text, "dim"))
    thinking = visible(prediction.thinking, "dim italic")
    return Text("\n").join(part for part in (thinking, visible(prediction.next_state)) if part)


def score_text(prediction: PredictionRecord) -> Text:
    """What one member was worth, in one line."""
    similarity = "-" if prediction.similarity is None else f"{prediction.similarity:.3f}"
    return Text(
        f"similarity {similarity}  reward {prediction.reward:g}  advantage {prediction.advantage:+.2f}  "
        f"{prediction.tokens} tokens{', cut off' if prediction.finish_reason == 'length' else ''}  "
        f"policy {prediction.policy_version}"
    )


class GroupView(Vertical):
    """Three panes and a line of numbers about the member that is shown."""

    member: reactive[int] = reactive(0, init=False)

    def __init__(self) -> None:
        super().__init__()
        # Held here, since a message may still come while the app closes and a query finds nothing any more.
        self._score = Static(id="score", markup=False)
        self._situation = TextPane("history and action", id="context")
        self._predicted = TextPane("predicted", id="predicted")
        self._real = TextPane("real", id="real")
        self._predictions: list[PredictionRecord] = []

    def compose(self) -> ComposeResult:
        """Numbers above, panes below."""
        yield self._score
        yield Horizontal(self._situation, self._predicted, self._real)

    def show(self, detail: GroupDetail | None, predictions: list[PredictionRecord]) -> None:
        """Shows another group; the place in the group is kept, so that it can be followed through groups."""
        self._predictions = predictions
        self._situation.show(Text() if detail is None else context_text(detail.transition))
        self._real.show(Text() if detail is None else visible(detail.transition.next_state))
        self.set_reactive(GroupView.member, min(self.member, max(len(predictions) - 1, 0)))
        self.watch_member()

    def step_member(self, by: int) -> None:
        """Goes to another member, round and round."""
        if self._predictions:
            self.member = (self.member + by) % len(self._predictions)

    def watch_member(self) -> None:
        """Shows the member."""
        if not self._predictions:
            self._predicted.border_title = "predicted"
            self._score.update("")
            self._predicted.show(Text())
            return
        one = self._predictions[self.member]
        self._predicted.border_title = f"predicted {self.member + 1}/{len(self._predictions)}"
        self._score.update(score_text(one))
        self._predicted.show(prediction_text(one))
