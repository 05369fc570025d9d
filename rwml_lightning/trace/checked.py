"""Rows of a run store as records. A run folder may come from anybody, so that what its columns hold is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rwml_lightning.schema import Turn

Record = TypeVar("Record")


class DamagedRow(ValueError):
    """A row that no writer of a run store writes; says which column holds what."""


def record(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """A frozen record from a row.

    Args:
        kind: The record's class.
        row: Values by the names of its fields.

    Raises:
        DamagedRow: A value is not of its field's type.
    """
    for name, allowed in _field_types(kind).items():  # type: ignore[arg-type]
        if name in row and not isinstance(row[name], allowed):
            raise DamagedRow(f"{name} of a {kind.__name__} holds {row[name]!r:.60}")
    return kind(**row)


def parsed(text: Any, what: str) -> Any:
    """What JSON says; ``what`` names the column in the error.

    Raises:
        DamagedRow: It is none.
    """
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise DamagedRow(f"{what} holds {text!r:.60} where JSON should stand") from None


def numbers(values: Any, what: str) -> tuple[float, ...]:
    """A list of JSON as floats.

    Raises:
        DamagedRow: It is no list of numbers.
    """
    try:
        if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values):
            return tuple(map(float, values))
    except OverflowError:
        pass
    raise DamagedRow(f"{what} holds {values!r:.60} where a list of numbers should stand")


def number_by_name(values: Any, what: str) -> dict[str, float]:
    """An object of JSON as floats by name.

    Raises:
        DamagedRow: It is none, or holds anything but numbers.
    """
    if not isinstance(values, dict):
        raise DamagedRow(f"{what} holds {values!r:.60} where numbers by name should stand")
    return dict(zip(values, numbers(list(values.values()), what), strict=True))


def columns(rows: Iterable[tuple[Any, ...]], *types: type | UnionType) -> list[tuple[Any, ...]]:
    """Rows of a query, their values checked by place.

    Raises:
        DamagedRow: A value is of another type.
    """
    found = list(rows)
    for place, allowed in enumerate(types):
        for row in found:
            if not isinstance(row[place], allowed):
                raise DamagedRow(f"{row[place]!r:.60} stands where a number should")
    return found


@cache
def _field_types(kind: type) -> Mapping[str, tuple[type, ...]]:
    return {name: _types(hint) for name, hint in get_type_hints(kind).items()}


def _types(hint: Any) -> tuple[type, ...]:
    """Classes that a value of an annotation has."""
    if get_origin(hint) is UnionType:
        return tuple(one for part in get_args(hint) for one in _types(part))
    if get_origin(hint) is Literal:
        return (str,)
    if hint is float:
        return (float, int)
    return (object,) if hint is Any else (get_origin(hint) or hint,)


def number(value: float | None) -> float:
    """A number that is always there; SQLite keeps NaN as NULL."""
    return math.nan if value is None else value


def history(text: str) -> tuple[Turn, ...]:
    """Read the turns of a transition's history.

    Raises:
        DamagedRow: The text is no list of turns.
    """
    turns = parsed(text, "history")
    names = [field.name for field in fields(Turn)]
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == len(names) for t in turns):
        raise DamagedRow(f"history holds {text!r:.60} where turns should stand")
    return tuple(record(Turn, dict(zip(names, turn, strict=True))) for turn in turns)
