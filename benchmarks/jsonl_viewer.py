"""A viewer of rollouts for comparison with the dashboard: it loads a whole JSONL file and shows one record at a time.

python benchmarks/jsonl_viewer.py FILE      # n, p: next, previous; / and Enter: search
"""

from __future__ import annotations

import json
import sys
from typing import Any, ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Input, Static


class Viewer(App[None]):
    """Show one record after another.

    Args:
        file: Path of a file with one record per line.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "go(1)"), Binding("p", "go(-1)"), Binding("slash", "search"), Binding("q", "quit"),
    ]  # fmt: skip

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.records: list[dict[str, Any]] = []
        self.place = 0

    def compose(self) -> ComposeResult:
        """Compose the position, the record and the search line."""
        yield Static(id="place", markup=False)
        with VerticalScroll():
            yield Static(id="record", markup=False)
        yield Input(disabled=True)

    def on_mount(self) -> None:
        """Load all records."""
        with open(self.file) as file:
            self.records = [json.loads(line) for line in file]
        self.action_go(0)

    def action_go(self, by: int) -> None:
        """Move by a number of records."""
        self.place = max(0, min(self.place + by, len(self.records) - 1))
        self.query_one("#place", Static).update(f"record {self.place + 1} of {len(self.records):,}")
        record = self.records[self.place]
        self.query_one("#record", Static).update("\n\n".join(f"{k}: {v}" for k, v in record.items()))

    def action_search(self) -> None:
        """Focus the search line."""
        line = self.query_one(Input)
        line.disabled = False
        line.focus()

    @on(Input.Submitted)
    def search(self, event: Input.Submitted) -> None:
        """Count the records that contain the text."""
        hits = [
            place
            for place, record in enumerate(self.records)
            if any(event.value in str(value) for value in record.values())
        ]
        self.query_one("#place", Static).update(f"found {len(hits):,}")


if __name__ == "__main__":
    Viewer(sys.argv[1]).run()
