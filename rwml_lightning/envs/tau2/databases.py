"""Databases of an episode, which share with all others what the episode never touches.

A domain's database has up to 7 MB, of which an episode reads a few records: copying it whole costs most of a reset, and hashing
it most of the reward.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel

Database = TypeVar("Database", bound=BaseModel)
Changes = dict[str, Any]
"""What differs from the domain's own database, by field and for tables by key; canonical JSON, or None for what is gone."""


class CopyOnAccess(dict[str, Any]):
    """A table whose records are those of ``base`` until they are asked for; what is handed out is a copy of its own.

    Membership, length and keys touch nothing; ``values`` and ``items`` copy every record that they are followed to.
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
        # With an iterator of its own, dict(table) and {**table} ask for the records too, where they would take the base's.
        return iter(self.keys())

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    # As the abstract mapping has them, by way of those above; keys, length and membership stay the dict's own.
    get, values, items = MutableMapping.get, MutableMapping.values, MutableMapping.items  # type: ignore[assignment]
    popitem = MutableMapping.popitem
    update, setdefault = MutableMapping.update, MutableMapping.setdefault

    def changes(self) -> Changes:
        """Records that differ from those of ``base``."""
        changed: Changes = {}
        for key in self._own & self.keys():
            now = canonical(super().__getitem__(key))
            if key not in self.base or now != canonical(self.base[key]):
                changed[key] = now
        return changed | dict.fromkeys(self.base.keys() - self.keys())


def isolate(base: Database) -> Database:
    """A database of its own for one episode: tables copied on access, everything else at once."""
    fields: dict[str, Any] = {
        name: CopyOnAccess(value) if isinstance(value, dict) else deepcopy(value)
        for name, value in vars(base).items()
    }
    return type(base).model_construct(**fields)


def changes(database: BaseModel | None, base: BaseModel | None) -> Changes:
    """How a database differs from ``base``: two that began as ``base`` are equal if, and only if, their changes are."""
    if database is None or base is None:
        return {}
    changed: Changes = {}
    for name, value in vars(database).items():
        before = getattr(base, name)
        if isinstance(value, CopyOnAccess) and value.base is before:
            now: Any = value.changes()
            if now:
                changed[name] = now
        elif isinstance(value, dict) and isinstance(before, dict):
            # An engine that updates a database replaces its tables by plain ones.
            table = {key: canonical(record) for key, record in value.items()}
            table = {
                key: now for key, now in table.items() if key not in before or now != canonical(before[key])
            }
            table |= dict.fromkeys(before.keys() - value.keys())
            if table:
                changed[name] = table
        elif (now := canonical(value)) != canonical(before):
            changed[name] = now
    return changed


def canonical(value: Any) -> str:
    """JSON in which equal values are equal texts, as the engine's own hash of a database is made."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
