"""Changes of the predictions for one transition over training."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from rwml_lightning.trace import GroupSummary, PredictionRecord, TraceReader
from rwml_tui.difference import mark_differences
from rwml_tui.messages import reported
from rwml_tui.text import one_line, visible
from rwml_tui.widgets.group_table import number, reward_bar
from rwml_tui.widgets.text_pane import TextPane
from rwml_tui.widgets.virtual_table import Column, VirtualTable


class OverTraining(ModalScreen[int | None]):
    """Lists the groups of one transition in training order; Enter selects a group in the main list.

    Args:
        reader: The run.
        groups: Groups of one transition.
        chosen: Id of the group under the cursor at the start.

    Raises:
        TraceError: The run cannot be read.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,o", "dismiss(None)", "back", key_display="esc", tooltip="Back to the list"),
        Binding("enter", "choose", "go to", tooltip="Show this group in the list"),
    ]

    def __init__(self, reader: TraceReader, groups: Sequence[GroupSummary], chosen: int) -> None:
        super().__init__()
        self.reader, self.chosen = reader, chosen
        self._groups = {group.id: group for group in groups}
        self._best = {group.id: best(reader.predictions(group.id)) for group in groups}
        columns: tuple[Column[GroupSummary], ...] = (
            Column("step", "step", 6, lambda row: Text(str(row.step)), "right"),
            Column("source", "source", 8, lambda row: one_line(row.source)),
            Column("rewards", "rewards", 8, lambda row: Text(reward_bar(row.rewards) if row.rewards else "")),
            Column("best", "best", 5, lambda row: number(row.best_similarity), "right"),
            Column("mean", "mean", 5, lambda row: number(row.mean_similarity), "right"),
            Column("text", "best prediction", 30, self._text),
        )
        self._table = VirtualTable(columns, self._read, lambda row: row.id, grow="text", id="steps")
        self._predicted, self._real = TextPane("best prediction", id="best"), TextPane("real", id="real")

    def compose(self) -> ComposeResult:
        """Yield the action, the list, the best prediction and the real next state."""
        first = next(iter(self._groups.values()))
        with Vertical():
            yield Static(Text("> ").append_text(one_line(first.action, 200)), id="action", markup=False)
            yield self._table
            yield self._predicted
            yield self._real
            yield Footer()

    def on_mount(self) -> None:
        """Show the list, with the cursor on the group from which the screen was opened."""
        self._table.show(array("q", self._groups))
        self._table.select(self.chosen)
        self._table.focus()

    @on(VirtualTable.Highlighted, "#steps")
    def show_best(self) -> None:
        """Show the best prediction of the group under the cursor."""
        if self._table.selected is None:
            return
        prediction = self._best[self._table.selected]
        with reported(self):
            detail = self.reader.group(self._table.selected)
            if detail is None:
                return
            real = detail.transition.next_state
            texts = Text(), visible(real)
            if prediction is not None:
                texts = mark_differences(prediction.next_state or "", real)
            self._predicted.show(texts[0])
            self._real.show(texts[1])

    def action_choose(self) -> None:
        """Return the chosen group."""
        self.dismiss(self._table.selected)

    def _read(self, ids: Sequence[int]) -> list[GroupSummary]:
        return [self._groups[one] for one in ids]

    def _text(self, row: GroupSummary) -> Text:
        prediction = self._best[row.id]
        return one_line("" if prediction is None else prediction.next_state or prediction.text, 200)


def best(predictions: Sequence[PredictionRecord]) -> PredictionRecord | None:
    """Return the prediction with the highest similarity, and the first of several equal ones."""
    return max(
        predictions, key=lambda p: (-2.0 if p.similarity is None else p.similarity, -p.member), default=None
    )
