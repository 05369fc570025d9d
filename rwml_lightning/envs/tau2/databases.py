"""Copy-on-access databases: an episode copies the records that it uses and shares all others with the other episodes.

A domain's database has up to 7 MB, and an episode reads a few records of it. A copy of the whole database would take most of the
time of a reset, and a hash of it most of the time of the reward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel

Database = TypeVar("Database", bound=BaseModel)
Changes = dict[str, Any]
"""Differences from the domain's original database by field, and in tables by key: canonical JSON, or None for a deleted record."""


class CopyOnAccess(dict[str, Any]):
    """Table that copies a record of ``base`` when it is first read, and returns the copy.

    Membership, length and keys copy nothing. ``values`` and ``items`` copy each record when the iteration reaches it.
    """

    def __init__(self, base: Mapping[str, Any]) -> None:
        super().__init__(base)
        self.base = base
        self._own: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in self._own:
            value = deepcopy(value)
            self[key] = value
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._own.add(key)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:
        # This override makes dict(table) and {**table} call __getitem__. Otherwise they would take the records of the base.
        return iter(self.keys())

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    # These methods of MutableMapping use the methods above. Keys, length and membership remain those of dict.
    get, values, items = MutableMapping.get, MutableMapping.values, MutableMapping.items  # type: ignore[assignment]
    popitem = MutableMapping.popitem
    update, setdefault = MutableMapping.update, MutableMapping.setdefault

    def changes(self) -> Changes:
        """Return the records that differ from ``base``, with None for a deleted record."""
        return _changed_records(self, self.base, self._own & self.keys())


def isolate(base: Database) -> Database:
    """Make a separate database for one episode. Tables are copied on access, all other fields at once."""
    fields: dict[str, Any] = {
        name: CopyOnAccess(value) if isinstance(value, dict) else deepcopy(value)
        for name, value in vars(base).items()
    }
    return type(base).model_construct(**fields)


def changes(database: BaseModel | None, base: BaseModel | None) -> Changes:
    """Return the differences of a database from ``base``.

    Two databases that began as ``base`` are equal if and only if their differences are equal.
    """
    if database is None or base is None:
        return {}
    changed: Changes = {}
    for name, value in vars(database).items():
        before = getattr(base, name)
        if isinstance(value, CopyOnAccess) and value.base is before:
            now: Any = value.changes()
        elif isinstance(value, dict) and isinstance(before, dict):
            # When the engine updates a database, it replaces the tables by plain dicts.
            now = _changed_records(value, before, value.keys())
        else:
            now = None if canonical(value) == canonical(before) else canonical(value)
        if now:
            changed[name] = now
    return changed


def _changed_records(table: Mapping[str, Any], base: Mapping[str, Any], keys: Iterable[str]) -> Changes:
    """Return the differences between two tables among the records ``keys``, and the records that only ``base`` has."""
    now = {key: canonical(table[key]) for key in keys}
    changed = {key: text for key, text in now.items() if key not in base or text != canonical(base[key])}
    return changed | dict.fromkeys(base.keys() - table.keys())


def canonical(value: Any) -> str:
    """Write a value as JSON, so that equal values give equal texts. The engine's hash of a database uses the same form."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
