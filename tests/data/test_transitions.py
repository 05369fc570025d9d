"""Transition files: what is written is read back, and what is broken is named."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwml_lightning.data.transitions import (
    SCHEMA,
    read_metadata,
    read_transitions,
    split_of_game,
    write_transitions,
)
from rwml_lightning.schema import Transition, Turn
from support.worlds import make_transition

text = st.text(max_size=30)
filled = st.text(min_size=1, max_size=30)
transitions = st.builds(
    Transition,
    transition_id=filled,
    environment=text,
    game=filled,
    task=text,
    history=st.lists(st.builds(Turn, text, text), max_size=3).map(tuple),
    observation=filled,
    action=filled,
    next_state=filled,
    kind=text,
    valid=st.booleans(),
    knowable=st.booleans(),
    split=st.sampled_from(["train", "validation"]),
)


@pytest.mark.heavy
@settings(max_examples=40, deadline=None)
@given(st.lists(transitions, max_size=5, unique_by=lambda t: t.transition_id))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Transition]
) -> None:
    path = tmp_path_factory.mktemp("round") / "folder" / "t.parquet"
    write_transitions(path, rows, {"seed": 3})
    assert read_transitions(path) == rows
    assert read_metadata(path) == {"seed": 3}
    assert [file.name for file in path.parent.iterdir()] == ["t.parquet"]


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def make_row(number: int, **changes: Any) -> dict[str, Any]:
    transition = make_transition(number)
    row = {name: getattr(transition, name) for name in SCHEMA.names}
    return {**row, "history": [{"observation": "o", "action": "a"}], **changes}


FAULTS = [
    ({"action": ""}, "action is empty"),
    ({"next_state": None}, "next_state is empty"),
    ({"split": "test"}, "split is 'test', not 'train' or 'validation'"),
    ({"transition_id": "t0"}, "transition_id 't0' occurs twice"),
    ({"task": None}, "task is missing"),
    ({"valid": None}, "valid is missing"),
    ({"history": [{"observation": None, "action": "a"}]}, "history has a turn without observation or action"),
    ({"history": [None]}, "history has a turn without observation or action"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS)
def test_a_broken_row_is_named_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], fault: str
) -> None:
    path = write_rows(tmp_path / "t.parquet", [make_row(0), make_row(1, **changes), make_row(2)])
    with pytest.raises(
        ValueError,
        match=r"t\.parquet, row 1: " + fault + r"\. Repair the file, or set data\.predictions\.on_broken",
    ):
        read_transitions(path)
    with caplog.at_level(logging.WARNING):
        assert [t.transition_id for t in read_transitions(path, "skip")] == ["t0", "t2"]
    assert f"1 broken rows left out: 1 ({fault})" in caplog.text


def test_a_missing_history_is_an_empty_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.parquet", [make_row(0, history=None)])
    assert read_transitions(path) == [make_transition(0)]


def test_a_missing_column_gets_the_nearest_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([make_row(0)], schema=SCHEMA)
    pq.write_table(table.rename_columns({"next_state": "nextstate"}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"has no column 'next_state'; is it the column 'nextstate'\?"):
        read_transitions(tmp_path / "t.parquet")
    pq.write_table(table.select(["kind"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"has no column 'transition_id'; it has kind"):
        read_transitions(tmp_path / "t.parquet")


def test_further_columns_and_other_string_types_do_no_harm(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([make_row(0)], schema=SCHEMA)
    large = pa.schema(
        [pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in SCHEMA]
    )
    pq.write_table(table.cast(large).append_column("more", [[1]]), tmp_path / "t.parquet")
    assert read_transitions(tmp_path / "t.parquet")[0].action == "go to door 0"


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([make_row(0)], schema=SCHEMA)
    for name in ("valid", "history"):
        changed = table.drop_columns([name]).append_column(name, [["yes"]])
        pq.write_table(changed, tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=rf"the column '{name}' holds string, not "):
            read_transitions(tmp_path / "t.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 but no more", b"transition_id,action\n"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.parquet can't be read as Parquet"):
        read_transitions(path)
    with pytest.raises(ValueError, match=r"none\.parquet can't be read as Parquet"):
        read_transitions(tmp_path / "none.parquet")


@given(
    games=st.lists(st.text(max_size=5), min_size=2, max_size=30),
    seed=st.integers(0, 9),
    share=st.floats(0.01, 0.99),
)
def test_split_is_by_game_and_leaves_none_empty(games: list[str], seed: int, share: float) -> None:
    splits = split_of_game(games, seed, share)
    assert set(splits) == set(games)
    assert splits == split_of_game(games[::-1] * 2, seed, share)
    held_out = sum(split == "validation" for split in splits.values())
    if len(splits) > 1:
        assert 1 <= held_out < len(splits)
        assert abs(held_out - share * len(splits)) <= 1


def test_split_shares() -> None:
    games = [f"g{n}" for n in range(200)]
    splits = split_of_game(games, 0, 0.1)
    assert sum(split == "validation" for split in splits.values()) == 20
    assert splits != split_of_game(games, 1, 0.1)
    assert set(split_of_game(games, 0, 0.0).values()) == {"train"}
    assert split_of_game(["one"], 0, 0.1) == {"one": "train"}


def test_the_written_history_holds_what_prompts_show(tmp_path: Path) -> None:
    turn = Turn("seen", "done", valid=False, reward=2.0, thinking="secret")
    write_transitions(tmp_path / "t.parquet", [make_transition(0, history=(turn,))])
    (read,) = read_transitions(tmp_path / "t.parquet")
    assert read.history == (replace(turn, valid=True, reward=0.0, thinking=""),)


def test_a_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([make_row(0)], schema=SCHEMA)
    surrogate = [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xed\xa0\x80")]
    texts = pa.Array.from_buffers(pa.string(), 1, surrogate)
    pq.write_table(
        table.set_column(SCHEMA.names.index("next_state"), "next_state", texts), tmp_path / "t.parquet"
    )
    with pytest.raises(ValueError, match=r"t\.parquet can't be read as Parquet: Column 7: .*Invalid UTF8"):
        read_transitions(tmp_path / "t.parquet")
