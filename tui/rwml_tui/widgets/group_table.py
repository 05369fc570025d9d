"""The list of groups, newest first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import DataTable

from rwml_lightning.trace import GroupSummary
from rwml_tui.text import one_line


def _number(value: float | None) -> Text:
    return Text("-" if value is None else f"{value:.2f}", justify="right")


class GroupTable(DataTable[Text]):
    """One row a group; ``=`` marks groups whose rewards are all equal, which teach nothing."""

    def on_mount(self) -> None:
        """Sets the columns up."""
        self.cursor_type = "row"
        self.border_title = "groups"
        for label, width in (("step", 6), ("kind", 12), ("action", 26), ("reward", 6), ("best", 6), ("=", 1)):
            self.add_column(label, width=width)

    def show(self, groups: Sequence[GroupSummary], total: int) -> None:
        """Replaces the rows. The cursor stays on its group, or on the newest when it stood there."""
        row, selected = self.cursor_row, self.selected
        self.clear()
        for group in groups:
            self.add_row(
                Text(str(group.step), justify="right"),
                one_line(group.kind),
                one_line(group.action),
                _number(group.mean_reward),
                _number(group.best_similarity),
                Text("=" if group.zero_variance else ""),
                key=str(group.id),
            )
        self._ids = [group.id for group in groups]
        if row > 0 and selected in self._ids:
            self.move_cursor(row=self._ids.index(selected))
        self.border_subtitle = f"{len(groups):,} newest of {total:,}" if total else "no predictions yet"

    _ids: Sequence[int] = ()

    @property
    def selected(self) -> int | None:
        """Id of the group under the cursor."""
        return self._ids[self.cursor_row] if 0 <= self.cursor_row < len(self._ids) else None
