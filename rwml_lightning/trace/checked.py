"""Conversion of rows to records. A run folder may come from anyone, so the values of its store are checked."""

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
    """Raised for a row that no writer of a run store produces. The message names the column and its value."""


def to_record(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """Build a frozen record from a row. An integer in a field of type ``bool`` becomes a bool, which SQLite does not have.

    Args:
        kind: Class of the record.
        row: Values by field name.

    Raises:
        DamagedRow: A value does not have the type of its field.
    """
    values = dict(row)
    for name, allowed in _field_types(kind).items():  # type: ignore[arg-type]
        if bool in allowed and isinstance(values.get(name), int):
            values[name] = bool(values[name])
        if name in values and not isinstance(values[name], allowed):
            raise DamagedRow(f"{name} of a {kind.__name__} holds {values[name]!r:.60}")
    return kind(**values)


def parse_json(text: Any, what: str) -> Any:
    """Parse JSON text. The error names the column ``what``.

    Raises:
        DamagedRow: The text is not valid JSON.
    """
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise DamagedRow(f"{what} holds {text!r:.60}, which is not valid JSON") from None


def to_floats(values: Any, what: str) -> tuple[float, ...]:
    """Convert a JSON list to floats. The error names the column ``what``.

    Raises:
        DamagedRow: ``values`` is not a list of numbers.
    """
    try:
        if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values):
            return tuple(map(float, values))
    except OverflowError:
        pass
    raise DamagedRow(f"{what} holds {values!r:.60}, which is not a list of numbers")


def to_floats_by_name(values: Any, what: str) -> dict[str, float]:
    """Convert a JSON object to floats by name. The error names the column ``what``.

    Raises:
        DamagedRow: ``values`` is not an object, or one of its values is not a number.
    """
    if not isinstance(values, dict):
        raise DamagedRow(f"{what} holds {values!r:.60}, which is not an object of numbers")
    return dict(zip(values, to_floats(list(values.values()), what), strict=True))


def check_columns(rows: Iterable[tuple[Any, ...]], *types: type | UnionType) -> list[tuple[Any, ...]]:
    """Return the rows of a query after a check that each column has the given type.

    Raises:
        DamagedRow: A value has another type.
    """
    checked = list(rows)
    for column, allowed in enumerate(types):
        for row in checked:
            if not isinstance(row[column], allowed):
                raise DamagedRow(f"a column of numbers holds {row[column]!r:.60}")
    return checked


@cache
def _field_types(kind: type) -> Mapping[str, tuple[type, ...]]:
    return {name: _types(hint) for name, hint in get_type_hints(kind).items()}


def _types(hint: Any) -> tuple[type, ...]:
    """Return the classes that a value with this annotation may have."""
    if get_origin(hint) is UnionType:
        return tuple(one for part in get_args(hint) for one in _types(part))
    if get_origin(hint) is Literal:
        return (str,)
    if hint is float:
        return (float, int)
    return (object,) if hint is Any else (get_origin(hint) or hint,)


def float_or_nan(value: float | None) -> float:
    """Return NaN for ``None``, since SQLite stores NaN as NULL."""
    return math.nan if value is None else value


def parse_history(text: str) -> tuple[Turn, ...]:
    """Parse the turns of a transition's history.

    Raises:
        DamagedRow: The text is not a list of turns.
    """
    turns = parse_json(text, "history")
    names = [field.name for field in fields(Turn)]
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == len(names) for t in turns):
        raise DamagedRow(f"history holds {text!r:.60}, which is not a list of turns")
    return tuple(to_record(Turn, dict(zip(names, turn, strict=True))) for turn in turns)
