"""The filter's columns: read back, replaced, and passed over by whoever does not ask for them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rwml_callbacks.easy_samples.columns import FilterColumns, read_filter_columns, write_filter_columns

from rwml_lightning.data.transitions import read_metadata, read_transitions, write_transitions
from support.worlds import make_world


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_transitions(tmp_path / "t.parquet", make_world(), {"seed": 3})
    return tmp_path / "t.parquet"


def test_the_columns_are_read_back_and_replaced(path: Path) -> None:
    assert read_filter_columns(path) is None
    write_filter_columns(path, {"take-apple": 1.0, "take-bowl": 0.25}, {"take-bowl"}, {"K": 10})
    write_filter_columns(path, {"take-apple": 0.5, "take-mug": 0.0}, {"take-mug"}, {"K": 4})
    assert read_filter_columns(path) == FilterColumns({"take-apple": 0.5, "take-mug": 0.0}, {"K": 4})
    rows = {row["transition_id"]: row for row in pq.read_table(path).to_pylist()}
    assert [rows["take-apple"][name] for name in ("filter_mean_reward", "filter_kept")] == [0.5, False]
    assert [rows["take-mug"][name] for name in ("filter_mean_reward", "filter_kept")] == [0.0, True]
    assert rows["take-bowl"]["filter_kept"] is None
    assert rows["take-cup"]["filter_mean_reward"] is None
    assert [file.name for file in path.parent.iterdir()] == ["t.parquet"]


def test_everything_else_in_the_file_stays(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("note", pa.array(["n"] * len(table))), path)
    write_filter_columns(path, {"take-apple": 1.0}, set(), {})
    assert read_transitions(path) == make_world()
    assert read_metadata(path)["seed"] == 3
    assert pq.read_table(path)["note"].to_pylist() == ["n"] * len(table)
