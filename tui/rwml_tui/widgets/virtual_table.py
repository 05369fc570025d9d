"""Table of any length, which holds only ids and reads the rows on the screen."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from rwml_tui.messages import reported

Row = TypeVar("Row")
_PAGE = 128
_MOST_KEPT = 4_096


@dataclass(frozen=True)
class Column(Generic[Row]):
    """Column of a table.

    Args:
        name: Name of the column in a sort order.
        label: Heading.
        width: Width in cells, at least that of the heading.
        cell: Function that formats a row's cell.
        justify: Alignment of the text.
        room: Smallest width of the table, in cells, at which the column is shown.
    """

    name: str
    label: str
    width: int
    cell: Callable[[Row], Text]
    justify: Literal["left", "right"] = "left"
    room: int = 0


class VirtualTable(ScrollView, Generic[Row], can_focus=True):
    """Shows rows by id.

    When the ids change, the cursor stays on its row; a cursor on the first row stays on the first row.

    Args:
        columns: Columns from left to right.
        read: Function that returns the rows of ids, in order. Ids that no longer exist are left out.
        identify: Function that returns the id of a row.
        grow: Name of the column that takes the remaining width.
        id: Widget id.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--header", "table--cursor"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "up", show=False),
        Binding("down", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home", "go(0)", "first", show=False),
        Binding("end", "go(-1)", "last", show=False),
    ]
    cursor: reactive[int] = reactive(0, init=False)

    @dataclass
    class TableMessage(Message):
        """A message of a table."""

        table: VirtualTable[Any]

        @property
        def control(self) -> VirtualTable[Any]:
            """Table, for selectors of handlers."""
            return self.table

    @dataclass
    class Highlighted(TableMessage):
        """Posted when the cursor moves to another row; ``row_id`` is ``None`` if the table is empty."""

        row_id: int | None

    @dataclass
    class HeaderClicked(TableMessage):
        """Posted when a heading is clicked."""

        column: str

    def __init__(
        self,
        columns: Sequence[Column[Row]],
        read: Callable[[Sequence[int]], Sequence[Row]],
        identify: Callable[[Row], int],
        grow: str,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._all_columns = columns
        self.sorted_by: tuple[str, bool] | None = None
        self._read, self._identify, self._grow = read, identify, grow
        self.ids: array[int] = array("q")
        self._rows: dict[int, Row | None] = {}

    def show(self, ids: array[int], sorted_by: tuple[str, bool] | None = None) -> None:
        """Replace the rows.

        Args:
            ids: Ids of the rows, in order.
            sorted_by: Name of the column by which the rows are sorted, and whether the order is descending.
        """
        row, selected = self.cursor, self.selected
        self.ids, self.sorted_by = ids, sorted_by
        self._rows.clear()
        self.virtual_size = Size(self._natural_width(), len(ids) + 1)
        place = 0
        if row > 0 and selected is not None:
            try:
                place = ids.index(selected)
            except ValueError:
                place = min(row, max(len(ids) - 1, 0))
        self.set_reactive(VirtualTable.cursor, place)
        self._keep_in_sight()
        self.refresh()
        if self.selected != selected or selected is None:
            self.post_message(self.Highlighted(self, self.selected))

    @property
    def columns(self) -> list[Column[Row]]:
        """Columns that are shown at the current width."""
        return [column for column in self._all_columns if self.size.width >= column.room]

    @property
    def selected(self) -> int | None:
        """Id of the row under the cursor."""
        return self.ids[self.cursor] if 0 <= self.cursor < len(self.ids) else None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, row_id: int) -> None:
        """Put the cursor on a row, if it is in the list."""
        if row_id in self.ids:
            self.cursor = self.ids.index(row_id)

    def watch_cursor(self) -> None:
        """Scroll to the cursor and post :class:`Highlighted`."""
        self._keep_in_sight()
        self.refresh()
        self.post_message(self.Highlighted(self, self.selected))

    def validate_cursor(self, cursor: int) -> int:
        """Limit the cursor to the rows of the list."""
        return max(0, min(cursor, len(self.ids) - 1))

    def action_move(self, by: int) -> None:
        """Move the cursor by ``by`` rows."""
        self.cursor += by

    def action_page(self, by: int) -> None:
        """Move the cursor by ``by`` pages."""
        self.cursor += by * max(self.size.height - 2, 1)

    def action_go(self, place: int) -> None:
        """Move the cursor to a row; a negative index counts from the end."""
        self.cursor = place if place >= 0 else len(self.ids) + place

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the clicked row, or post :class:`HeaderClicked` for a heading."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            x = offset.x + self.scroll_offset.x
            for column, width in zip(self.columns, self._widths(), strict=True):
                if x < width + 1:
                    self.post_message(self.HeaderClicked(self, column.name))
                    return
                x -= width + 1
        elif (row := self.scroll_offset.y + offset.y - 1) < len(self.ids):
            self.cursor = row

    def render_line(self, y: int) -> Strip:
        """Render one line: the heading, which does not scroll, or a row."""
        left, top = self.scroll_offset
        width = self.size.width
        if y == 0:
            style = self.get_component_rich_style("table--header")
            cells = [Text(self._heading(column)) for column in self.columns]
        else:
            place = top + y - 1
            style = (
                self.get_component_rich_style("table--cursor") if place == self.cursor else self.rich_style
            )
            row = self._row(place)
            if row is None:
                return Strip.blank(width, self.rich_style)
            cells = [column.cell(row) for column in self.columns]
        line = Text(end="")
        for column, cell, size in zip(self.columns, cells, self._widths(), strict=True):
            cell.no_wrap = True
            cell.truncate(size, overflow="ellipsis")
            cell.align(column.justify, size)
            line.append_text(cell).append(" ")
        strip = Strip(line.render(self.app.console)).apply_style(style)
        return strip.crop_extend(left, left + width, style)

    def on_resize(self) -> None:
        """Fit the columns to the new width and keep the cursor visible."""
        self.virtual_size = Size(self._natural_width(), len(self.ids) + 1)
        self._keep_in_sight()

    def _heading(self, column: Column[Row]) -> str:
        if self.sorted_by is None or self.sorted_by[0] != column.name:
            return column.label
        return column.label + ("↓" if self.sorted_by[1] else "↑")

    def _natural_width(self) -> int:
        return max(sum(column.width + 1 for column in self.columns), self.size.width)

    def _widths(self) -> list[int]:
        rest = self._natural_width() - sum(column.width + 1 for column in self.columns)
        return [column.width + (rest if column.name == self._grow else 0) for column in self.columns]

    def _row(self, place: int) -> Row | None:
        if not 0 <= place < len(self.ids):
            return None
        row_id = self.ids[place]
        if row_id not in self._rows:
            if len(self._rows) > _MOST_KEPT:
                self._rows.clear()
            first = place // _PAGE * _PAGE
            page = self.ids[first : first + _PAGE]
            self._rows |= dict.fromkeys(page)  # missing and unreadable rows are read only once
            with reported(self):
                self._rows |= {self._identify(row): row for row in self._read(page)}
        return self._rows.get(row_id)

    def _keep_in_sight(self) -> None:
        rows = max(self.size.height - 1, 1)
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= top + rows:
            self.scroll_to(y=self.cursor - rows + 1, animate=False)
