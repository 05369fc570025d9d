"""Databases that share what an episode does not touch behave like copies."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rwml_lightning.envs.tau2.databases import CopyOnAccess, changes, isolate

KEYS = st.sampled_from("abcd")
OPERATIONS = st.lists(st.tuples(st.sampled_from(["get", "edit", "set", "del", "pop", "setdefault", "update", "values", "copies"]), KEYS, st.integers(0, 2)), max_size=8)  # fmt: skip


class Record(BaseModel):
    tags: list[int]


class Database(BaseModel):
    records: dict[str, Record]
    names: dict[str, list[int]] = {}
    others: list[int] = []


def make_base() -> Database:
    return Database(
        records={key: Record(tags=[n]) for n, key in enumerate("abc")}, names={"a": [1]}, others=[1]
    )


def apply(table: dict[str, Record], operations: list[tuple[str, str, int]]) -> list[Any]:
    """Do the same to any table, and return all that it says."""
    said: list[Any] = []
    for name, key, value in operations:
        match name:
            case "get":
                said.append(table.get(key))
            case "edit":
                if key in table:
                    table[key].tags.append(value)
            case "set":
                table[key] = Record(tags=[value])
            case "del":
                table.pop(key, None)
            case "pop":
                said.append(table.pop(key, None))
            case "setdefault":
                said.append(table.setdefault(key, Record(tags=[value])))
            case "update":
                table.update({key: Record(tags=[value])})
            case "copies":
                for plain in (dict(table), {**table}, table.copy()):
                    if key in plain:
                        plain[key].tags.append(value)
            case "values":
                for record in table.values():
                    record.tags.append(value)
        said.append((len(table), sorted(table), key in table))
    return deepcopy(said)


@given(operations=OPERATIONS)
def test_a_shared_table_is_like_a_copy(operations: list[tuple[str, str, int]]) -> None:
    base = make_base()
    untouched, copy, shared = deepcopy(base), deepcopy(base), isolate(base)
    assert apply(shared.records, operations) == apply(copy.records, operations)
    assert dict(shared.records.items()) == copy.records
    assert base == untouched
    assert shared.model_dump_json() == copy.model_dump_json()


@given(first=OPERATIONS, second=OPERATIONS)
def test_databases_are_equal_if_and_only_if_their_changes_are(
    first: list[tuple[str, str, int]], second: list[tuple[str, str, int]]
) -> None:
    base = make_base()
    one, other, replaced = isolate(base), isolate(base), isolate(base)
    apply(one.records, first)
    apply(other.records, second)
    assert (changes(one, base) == changes(other, base)) == (one.model_dump() == other.model_dump())
    # an engine may put a plain table in the place of a shared one
    apply(replaced.records, first)
    replaced.records = dict(replaced.records.items())
    assert changes(replaced, base) == changes(one, base)


def test_only_what_is_asked_for_is_copied() -> None:
    base = make_base()
    shared = isolate(base)
    assert "a" in shared.records
    assert len(shared.records) == 3
    record = shared.records["a"]
    assert record is shared.records["a"] is not base.records["a"]
    assert dict.__getitem__(shared.records, "b") is base.records["b"]
    assert isinstance(shared.records, CopyOnAccess)
    with pytest.raises(KeyError):
        shared.records["z"]


def test_other_fields_are_compared_too() -> None:
    base = make_base()
    database = isolate(base)
    assert changes(database, base) == {}
    database.others.append(2)
    del database.names["a"]
    assert changes(database, base) == {"names": {"a": None}, "others": "[1, 2]"}
    assert changes(None, None) == {}
