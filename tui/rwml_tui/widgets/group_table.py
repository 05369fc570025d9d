"""Table of the recorded groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.text import Text

from rwml_lightning.trace import GroupSummary, TraceReader
from rwml_tui.text import one_line
from rwml_tui.widgets.virtual_table import Column, VirtualTable

_BLOCKS = "▁▂▃▄▅▆▇█"
BAR_MEMBERS = 8


def reward_bar(rewards: Sequence[float]) -> str:
    """Draw one block per member, higher for a higher reward, or ``?`` for a reward that is not finite.

    The scale goes from 0 to 1, and further if a reward lies outside.
    """
    finite = [reward for reward in rewards if math.isfinite(reward)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    return "".join(
        _BLOCKS[round((reward / 2 - low / 2) / (high / 2 - low / 2) * (len(_BLOCKS) - 1))]
        if math.isfinite(reward)
        else "?"
        for reward in rewards[:BAR_MEMBERS]
    )


def number(value: float | None) -> Text:
    """Format a number with two decimals, or a dash for ``None``."""
    return Text("-" if value is None else f"{value:.2f}")


def _number(name: str) -> Callable[[GroupSummary], Text]:
    return lambda row: number(getattr(row, name))


COLUMNS: tuple[Column[GroupSummary], ...] = (
    Column("step", "step", 6, lambda row: Text(str(row.step)), "right"),
    Column("source", "source", 8, lambda row: one_line(row.source)),
    Column("kind", "kind", 12, lambda row: one_line(row.kind)),
    Column("task", "task", 28, lambda row: one_line(row.task), room=120),
    Column("action", "action", 16, lambda row: one_line(row.action)),
    Column("rewards", "rewards", 8, lambda row: Text(reward_bar(row.rewards) if row.rewards else "")),
    Column("mean_reward", "reward", 7, _number("mean_reward"), "right"),
    Column("best_similarity", "best", 5, _number("best_similarity"), "right"),
    Column("mean_similarity", "mean", 5, _number("mean_similarity"), "right"),
    Column("zero_variance", "=", 2, lambda row: Text("=" if row.zero_variance else "")),
)


class GroupTable(VirtualTable[GroupSummary]):
    """Shows one row per group; ``=`` marks groups with equal rewards, from which the model learns nothing."""

    def __init__(self, reader: TraceReader) -> None:
        super().__init__(COLUMNS, reader.groups_by_id, lambda row: row.id, grow="action", id="groups")
        self.border_title = "groups"
