"""Report of an audit: tables, JSON and a summary in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rwml_lightning.audit.candidates import Group
from rwml_lightning.audit.measure import MAX_NEAR_MISS_REWARD, MIN_BALANCED_ACCURACY, TAUS, Audit, Row, shares
from rwml_lightning.files import write_json
from rwml_lightning.terminal import Terminal, make_table

_COLUMNS = (0.02, 0.05, 0.1, 0.2, 0.4)
GROUPS: dict[Group, str] = {
    "rewording": "rewordings (right)",
    "near miss": "near misses (wrong)",
    "other state": "other states (wrong)",
    "floor": "floors, where wrong",
}
"""Labels of the groups, in the order of the table."""


def verdict(audit: Audit) -> list[str]:
    """Summarise an audit in a few sentences; a line that begins with "Warning" says what to change."""
    right, wrong = audit.mean_reward("rewording"), audit.mean_reward("near miss")
    if right is None or wrong is None:
        return ["The audit has no result: it found no rewording or no near miss of these texts."]
    lines = [
        f"As configured, the mean reward is {right:.2f} for rewordings and {wrong:.2f} for near misses (mean of kinds)."
    ]
    choice = audit.choice
    blind = wrong > MAX_NEAR_MISS_REWARD * right
    if choice is not None:
        lines.append(
            f"The best tau_d by distance alone is {choice.tau_d:g} (balanced accuracy {choice.balanced_accuracy:.2f}): "
            f"it accepts {choice.hits:.0%} of rewordings and {choice.false_alarms:.0%} of near misses."
        )
        if choice.balanced_accuracy < MIN_BALANCED_ACCURACY:
            detail = "" if blind else "; this reward uses more than the distance"
            lines.append(f"{'Warning: no' if blind else 'No'} tau_d separates the two{detail}.")
    if blind:
        lines.append(
            "Warning: near misses earn too much reward: a model trained with this reward may omit details that the reward "
            "does not detect. Use a lower tau_d, ContentReward or ContrastiveReward."
        )
    return lines


def print_audit(audit: Audit, console: Terminal) -> None:
    """Print the two tables and the summary of an audit."""
    console.print(_render_rows(audit))
    console.print(_render_examples(audit))
    for line in verdict(audit):
        console.print(line, style="bold yellow" if line.startswith("Warning") else "")


def write_audit(audit: Audit, file: Path, settings: dict[str, Any]) -> None:
    """Write an audit as JSON.

    Args:
        audit: Audit to write.
        file: Output file; an existing file is replaced atomically.
        settings: Settings of the audit, written to the same file.
    """
    rows = [
        asdict(row)
        | {
            "distances": _quantiles(row),
            "accepted": dict(zip(map(str, TAUS), row.accepted, strict=False)),
        }
        for row in audit.rows
    ]
    content = {
        **settings,
        "num_transitions": audit.num_transitions,
        "tau_d": audit.tau_d,
        "choice": None if audit.choice is None else asdict(audit.choice),
        "verdict": verdict(audit),
        "rows": rows,
    }
    write_json(file, content)


def _render_rows(audit: Audit) -> Table:
    embeds = any(row.distances for row in audit.rows)
    title = f"Reward on texts made from {audit.num_transitions} real next states"
    distances = ["distance", *(f"< {tau:g}" for tau in _COLUMNS)] if embeds else []
    table = make_table(title, ["", "n", *distances, "reward"])
    table.columns[0].no_wrap = True
    for group in GROUPS:
        rows = audit.group(group)
        if not rows:
            continue
        mean = audit.mean_reward(group)
        accepted = ["", *_at_columns(shares(rows, group))] if embeds else []
        count = str(sum(row.count for row in rows))
        table.add_row(GROUPS[group], count, *accepted, f"{mean:.2f}", style="bold")
        for row in rows:
            accepted = [_median(row), *_at_columns(row.accepted)] if embeds else []
            cells = [f"  {row.kind}", str(row.count), *accepted, f"{row.reward:.2f}"]
            table.add_row(*cells, end_section=row is rows[-1])
    return table


def _render_examples(audit: Audit) -> Table:
    columns = ("kind", "real next state", "text", "distance", "reward")
    title = "Near miss with the highest reward, by kind"
    table = make_table(title, columns, num_texts=3, show_lines=True)
    for row in audit.group("near miss"):
        example = row.example
        distance = "" if example.distance is None else f"{example.distance:.3f}"
        table.add_row(row.kind, example.real, example.text, distance, f"{example.reward:.2f}")
    return table


def _quantiles(row: Row) -> dict[str, float]:
    levels = (0.1, 0.5, 0.9)
    return {f"{q:g}": float(np.quantile(row.distances, q)) for q in levels} if row.distances else {}


def _median(row: Row) -> str:
    return f"{_quantiles(row)['0.5']:.3f}" if row.distances else ""


def _at_columns(accepted: Sequence[float]) -> list[str]:
    return [f"{accepted[TAUS.index(tau)]:.2f}" if accepted else "" for tau in _COLUMNS]
