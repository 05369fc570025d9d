"""Predicted and real next states: the list of groups and the selected group."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input

from rwml_lightning.trace import Filter, GroupQuery, GroupSummary, TraceError, TraceReader
from rwml_tui.formats import markdown
from rwml_tui.messages import AskWhatIf, Problem, reported
from rwml_tui.query_line import parse_query_line
from rwml_tui.screens.compare import Compare
from rwml_tui.screens.export import Export
from rwml_tui.screens.over_training import OverTraining
from rwml_tui.widgets.group_table import GroupTable
from rwml_tui.widgets.group_view import GroupView
from rwml_tui.widgets.line import Line


class Predictions(Vertical):
    """Shows the groups of a run, with a search line and sorting by any column.

    Args:
        readers: Runs by name: the run that is shown, then the runs to compare it with.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "member(1)", "member", tooltip="Show the next prediction of this group"),
        Binding("p", "member(-1)", "previous", tooltip="Show the prediction before", show=False),
        Binding("t", "thinking", "thinking", tooltip="Unfold what the model thought, or fold it"),
        Binding("right_square_bracket", "training_step(1)", "step +", key_display="]", tooltip="Go to the training step after this one"),
        Binding("left_square_bracket", "training_step(-1)", "step -", key_display="[", show=False, tooltip="Go to the training step before this one"),
        Binding("slash", "search", "find", key_display="/", tooltip="Filter and search: reward>0.5 kind=navigation mug"),
        Binding("s", "sort", "sort", tooltip="Sort by the next column"),
        Binding("r", "reverse", "reverse", tooltip="Sort the other way round", show=False),
        Binding("e", "export", "export", tooltip="Write this group or the list to a JSONL, CSV or Markdown file"),
        Binding("y", "copy", "copy", show=False, tooltip="Copy this group to the clipboard, as Markdown"),
        Binding("v", "compare", "runs", tooltip="What the other runs predicted for this transition"),
        Binding("w", "what_if", "what if", tooltip="Another action in this state: what the model predicts, and what happens"),
        Binding("o", "over_training", "over training", tooltip="The same transition from step to step"),
    ]  # fmt: skip

    def __init__(self, readers: Mapping[str, TraceReader]) -> None:
        super().__init__()
        self.readers = readers
        self.reader = reader = next(iter(readers.values()))
        self.query_shown = GroupQuery()
        self.until: int | None = None
        self._asked: GroupQuery | None = None
        self._reading: TraceReader | None = None
        self._line = Line(
            placeholder="find: reward>0.5 kind=navigation step>=10 mug", compact=True, id="find"
        )
        self.table, self.view = GroupTable(reader), GroupView()

    def compose(self) -> ComposeResult:
        """Yield the search line, the list and the selected group."""
        yield self._line
        yield self.table
        yield self.view

    def reload(self) -> None:
        """Read the list again."""
        query = self.query_shown
        if self.until is not None:
            query = replace(query, filters=(*query.filters, Filter("id", "<=", self.until)))
        if self._reading is not None and query != self._asked:
            self._reading.interrupt()  # its result is no longer needed
        self._asked = query
        self._find(query)

    @work(thread=True, exclusive=True, group="groups")
    def _find(self, query: GroupQuery) -> None:
        try:
            with TraceReader(self.reader.path) as reader:  # each thread needs its own connection
                self._reading = reader
                found, total = reader.group_ids(query), reader.count_groups()
        except TraceError as error:
            if query == self._asked:
                self.app.call_from_thread(self.post_message, Problem(str(error)))
            return
        self.app.call_from_thread(self._show, found, total, query)

    def _show(self, found: array[int], total: int, query: GroupQuery) -> None:
        if query != self._asked:
            return
        plain = not query.filters and not query.search
        self.table.border_title = f"{len(found):,} groups" if plain else f"{len(found):,} of {total:,} groups"
        if not len(found):
            self.table.border_title = "no group like this" if total else "no predictions yet"
        by = "step" if query.order_by == "id" else query.order_by
        self.table.show(found, (by, query.descending))

    @on(GroupTable.Highlighted, "#groups")
    def show_group(self) -> None:
        """Show the group under the cursor."""
        selected = self.table.selected
        with reported(self):
            detail = None if selected is None else self.reader.group(selected)
            predictions = [] if detail is None else self.reader.predictions(detail.summary.id)
            self.view.show(None if detail is None else detail.transition, predictions)

    @on(Input.Changed, "#find")
    def find(self, event: Input.Changed) -> None:
        """Apply the query while it is typed."""
        try:
            asked = parse_query_line(event.value)
        except ValueError as error:
            self._line.add_class("wrong")
            self.post_message(Problem(str(error)))
            return
        self._line.remove_class("wrong")
        self.query_shown = replace(self.query_shown, filters=asked.filters, search=asked.search)
        self.reload()

    @on(Input.Submitted, "#find")
    def leave_line(self) -> None:
        """Focus the list after Enter."""
        self.table.focus()

    @on(GroupTable.HeaderClicked, "#groups")
    def sort_by_heading(self, event: GroupTable.HeaderClicked) -> None:
        """Sort by the column, or reverse the order if the list is already sorted by it."""
        self._sort(event.column, None)

    def action_member(self, by: int) -> None:
        """Go to another prediction of the group."""
        self.view.step_member(by)

    def action_thinking(self) -> None:
        """Fold or unfold the thinking."""
        self.view.thinking = not self.view.thinking

    def action_search(self) -> None:
        """Focus the search line."""
        self._line.focus()

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = [column.name for column in self.table.columns if column.name != "rewards"]
        shown = "step" if self.query_shown.order_by == "id" else self.query_shown.order_by
        place = names.index(shown) if shown in names else -1
        self._sort(names[(place + 1) % len(names)], True)

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._sort(self.query_shown.order_by, not self.query_shown.descending)

    def _sort(self, name: str, descending: bool | None) -> None:
        name = {"rewards": "mean_reward", "id": "step"}.get(name, name)
        if descending is None:
            same = name == self.query_shown.order_by
            descending = not self.query_shown.descending if same else True
        self.query_shown = replace(self.query_shown, order_by=name, descending=descending)
        self.reload()

    def action_training_step(self, by: int) -> None:
        """Go to the first listed group of the next or previous training step."""
        here = self._summary()
        if here is None:
            return
        operator, descending = (">", False) if by > 0 else ("<", True)
        query = replace(
            self.query_shown,
            stage=here.stage,
            source=here.source,
            order_by="step",
            descending=descending,
            filters=(*self.query_shown.filters, Filter("step", operator, here.step)),  # type: ignore[arg-type]
        )
        with reported(self):
            for group_id in self.reader.group_ids(query, limit=1):
                self.table.select(group_id)

    def action_over_training(self) -> None:
        """Open the screen with the transition's groups over training, and select the group chosen there."""
        here = self._summary()
        if here is not None:
            with reported(self):
                groups = self.reader.same_transition(here.transition_id)
                self.app.push_screen(OverTraining(self.reader, groups, here.id), self._go_to)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable comparison with a single run, and the search key while the search line has the focus."""
        if action == "search":
            return not self._line.has_focus
        return action != "compare" or len(self.readers) > 1

    def action_what_if(self) -> None:
        """Open the what-if screen at the selected transition's state, or at the start of a game if there is none."""
        here = self._summary()
        self.post_message(AskWhatIf({"begin": 0} if here is None else {"find": here.transition_id}))

    def action_compare(self) -> None:
        """Open the screen that compares the transition's predictions of all runs."""
        with reported(self):
            detail = None if self.table.selected is None else self.reader.group(self.table.selected)
            if detail is not None:
                self.app.push_screen(Compare(self.readers, detail.transition, detail.summary.source))

    def action_export(self) -> None:
        """Open the export screen."""
        if self.table.selected is not None:
            screen = Export(self.reader.path, self.table.ids, self.table.selected)
            self.app.push_screen(screen, lambda done: self.app.notify(done, markup=False) if done else None)

    def action_copy(self) -> None:
        """Copy the group to the clipboard as Markdown."""
        with reported(self):
            detail = None if self.table.selected is None else self.reader.group(self.table.selected)
            if detail is not None:
                self.app.copy_to_clipboard(markdown(detail, self.reader.predictions(detail.summary.id)))
                self.app.notify("copied", timeout=1)

    def _go_to(self, group_id: int | None) -> None:
        if group_id is not None:
            self.table.select(group_id)

    def _summary(self) -> GroupSummary | None:
        found: list[GroupSummary] = []
        if self.table.selected is not None:
            with reported(self):
                found = self.reader.groups_by_id([self.table.selected])
        return found[0] if found else None
