"""Transition files: one Parquet row per transition, readable by any Parquet reader."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rapidfuzz import fuzz, process

from rwml_lightning.files import replacing
from rwml_lightning.schema import Transition, Turn

log = logging.getLogger(__name__)

METADATA_KEY = b"rwml"
SCHEMA = pa.schema(
    [
        ("transition_id", pa.string()),
        ("environment", pa.string()),
        ("game", pa.string()),
        ("task", pa.string()),
        ("history", pa.list_(pa.struct([("observation", pa.string()), ("action", pa.string())]))),
        ("observation", pa.string()),
        ("action", pa.string()),
        ("next_state", pa.string()),
        ("kind", pa.string()),
        ("valid", pa.bool_()),
        ("knowable", pa.bool_()),
        ("split", pa.string()),
    ]
)
_REQUIRED_TEXT = ("transition_id", "game", "observation", "action", "next_state")


def is_sample(transition: Transition) -> bool:
    """Return whether a transition has a text to predict and texts to predict it from. An environment may answer with no text."""
    return all(text.strip() for text in (transition.observation, transition.action, transition.next_state))


def write_transitions(
    path: Path, transitions: Iterable[Transition], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write all transitions at once. The file appears only when it is complete.

    Args:
        path: Parquet file. Its folder is created.
        transitions: Transitions to write.
        metadata: Settings that the transitions were made with; :func:`read_metadata` returns them.
    """
    rows = [_to_row(transition) for transition in transitions]
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(dict(metadata or {})).encode()})
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")


def read_transitions(path: Path, on_broken: Literal["raise", "skip"] = "raise") -> list[Transition]:
    """Read a transition file.

    Args:
        path: Parquet file.
        on_broken: ``raise`` raises an error with the first broken row; ``skip`` leaves broken rows out, and logs their number and
            positions.

    Raises:
        ValueError: The file is not a transition file, or a row is broken.
    """
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # other tools may write texts that are not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read as Parquet: {str(error).splitlines()[0]}") from error
    for name in SCHEMA.names:
        if name not in table.column_names:
            near = process.extractOne(name, table.column_names, scorer=fuzz.ratio, score_cutoff=60)
            hint = f"; is it the column {near[0]!r}?" if near else f"; it has {', '.join(table.column_names)}"
            raise ValueError(f"{path} has no column {name!r}{hint}")
    table = _typed(path, table.select(SCHEMA.names))
    transitions: list[Transition] = []
    broken: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(table.to_pylist()):
        fault = _fault(row, seen)
        if fault is None:
            seen.add(row["transition_id"])
            transitions.append(_from_row(row))
        elif on_broken == "raise":
            raise ValueError(
                f"{path}, row {number}: {fault}. Repair the file, or set data.predictions.on_broken to 'skip'"
            )
        else:
            broken.append(f"{number} ({fault})")
    if broken:
        log.warning("%s: %d broken rows left out: %s", path, len(broken), ", ".join(broken[:20]))
    return transitions


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the settings that a file was made with; empty if the file does not store them."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(METADATA_KEY, b"{}"))


def split_of_game(
    games: Sequence[str], seed: int, validation_share: float
) -> dict[str, Literal["train", "validation"]]:
    """Assign each game to a split, so that no validation transition comes from a training game (paper: 90/10).

    Args:
        games: Game ids; order and repetition do not matter.
        seed: Seed of the draw.
        validation_share: Share of games for validation; at least one game when there are two or more.
    """
    from rwml_lightning.seeds import derive_seed

    distinct = sorted(set(games), key=lambda game: derive_seed(seed, "split", game))
    count = round(len(distinct) * validation_share)
    if validation_share > 0 and len(distinct) > 1:
        count = min(max(count, 1), len(distinct) - 1)
    return {game: "validation" if i < count else "train" for i, game in enumerate(distinct)}


def _typed(path: Path, table: pa.Table) -> pa.Table:
    """Cast a table to the types of :data:`SCHEMA`. Raise a ValueError if a column is not of the same sort (nested, boolean, other)."""
    for field in SCHEMA:
        found = table.schema.field(field.name).type
        sort = pa.types.is_nested if pa.types.is_nested(field.type) else pa.types.is_boolean
        if sort(found) != sort(field.type):
            raise ValueError(f"{path}: the column {field.name!r} holds {found}, not {field.type}")
    return table.cast(SCHEMA)


def _to_row(transition: Transition) -> dict[str, Any]:
    row = asdict(transition)
    row["history"] = [{"observation": turn.observation, "action": turn.action} for turn in transition.history]
    return row


def _from_row(row: dict[str, Any]) -> Transition:
    history = tuple(Turn(turn["observation"], turn["action"]) for turn in row["history"] or ())
    return Transition(**{**row, "history": history})


def _fault(row: dict[str, Any], seen: set[str]) -> str | None:
    for name in _REQUIRED_TEXT:
        if not row[name]:
            return f"{name} is empty"
    if row["split"] not in ("train", "validation"):
        return f"split is {row['split']!r}, not 'train' or 'validation'"
    if row["transition_id"] in seen:
        return f"transition_id {row['transition_id']!r} occurs twice"
    if any(turn is None or None in turn.values() for turn in row["history"] or ()):
        return "history has a turn without observation or action"
    return next(
        (f"{name} is missing" for name, value in row.items() if value is None and name != "history"), None
    )
