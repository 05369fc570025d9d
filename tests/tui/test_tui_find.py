"""The line that finds groups: what it means, and what the list then shows."""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_tui.app import Dashboard
from rwml_tui.query_line import NAMES, parse_query_line
from rwml_tui.widgets.group_table import GroupTable, reward_bar
from rwml_tui.widgets.run_bar import RunBar
from textual.pilot import Pilot
from textual.widgets import Input

from rwml_lightning.trace import Filter, GroupQuery, TraceError, TraceReader
from support.dashboard import drive, idle, press, shown


def test_conditions_and_words() -> None:
    query = parse_query_line('reward>=0.5 mug kind=navigation action~"go to" equal=yes shelf step<10')
    assert query == GroupQuery(
        filters=(
            Filter("mean_reward", ">=", 0.5),
            Filter("kind", "=", "navigation"),
            Filter("action", "contains", "go to"),
            Filter("zero_variance", "=", 1.0),
            Filter("step", "<", 10.0),
        ),
        search="mug shelf",
    )
    assert parse_query_line("") == GroupQuery()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rewrd>1", "no column 'rewrd' in the list of groups: did you mean"),
        ("step>many", "step needs a number, not 'many'"),
        ("step>", "step needs a number, not 'nothing'"),
    ],
)
def test_what_a_line_can_not_mean(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query_line(line)


def advice(line: str) -> str:
    """What is said of a line that means nothing; empty for a query."""
    try:
        parse_query_line(line).where()
    except ValueError as error:
        return str(error)
    return ""


@given(st.text())
def test_any_line_is_a_query_or_one_line_of_advice(line: str) -> None:
    assert "\n" not in advice(line)


@given(
    st.sampled_from(sorted(NAMES)),
    st.sampled_from(["<", "<=", ">", ">=", "=", "!="]),
    st.floats(allow_nan=False),
)
def test_numbers_are_read_as_numbers(name: str, operator: str, value: float) -> None:
    if name == "transition":
        return
    (found,) = parse_query_line(f"{name}{operator}{value!r}").filters
    assert (found.column, found.operator, found.value) == (NAMES[name], operator, value)


def test_a_bar_shows_each_member() -> None:
    assert reward_bar([0.0, 1.0, 0.5]) == "▁█▅"
    assert reward_bar([-1.0, 1.0]) == "▁█"
    assert reward_bar([2.0, 0.0]) == "█▁"
    assert len(reward_bar([0.0] * 20)) == 8


@pytest.mark.heavy
def test_the_list_follows_the_line(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        table = app.query_one(GroupTable)
        await press(app, pilot, "slash", *"step>2")
        assert len(table) == 2
        assert "2 of 5 groups" in shown(app)
        await press(app, pilot, *"x")
        assert "step needs a number, not '2x'" in str(app.query_one(RunBar).render())
        assert len(table) == 2
        app.query_one("#find", Input).value = "vase step=1"
        await idle(app, pilot)
        assert len(table) == 1
        assert "a mug at step 1" in await press(app, pilot, "enter", "t")
        app.query_one("#find", Input).value = "zebra"
        await idle(app, pilot)
        assert "no group like this" in shown(app)

    drive(run, test)


@pytest.mark.heavy
def test_any_column_sorts_both_ways(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        table = app.query_one(GroupTable)
        assert "step↓" in shown(app)
        assert "step↑" in await press(app, pilot, "r")
        assert table.sorted_by == ("step", False)
        await pilot.click(table, offset=(12, 1))
        await idle(app, pilot)
        assert table.sorted_by == ("source", True)
        await pilot.click(table, offset=(12, 1))
        await idle(app, pilot)
        assert table.sorted_by == ("source", False)
        for _ in range(8):
            await press(app, pilot, "s")
        assert table.sorted_by == ("source", True)  # once round

    drive(run, test)


@pytest.mark.heavy
def test_keys_step_through_training(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "a mug at step 3" in await press(app, pilot, "left_square_bracket")
        assert "a mug at step 2" in await press(app, pilot, "left_square_bracket")
        assert "a mug at step 3" in await press(app, pilot, "right_square_bracket")
        assert "a mug at step 0" in await press(app, pilot, "end")
        assert "a mug at step 0" in await press(app, pilot, "left_square_bracket")

    drive(run, test)


@pytest.mark.heavy
def test_an_older_search_that_ends_later_is_not_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = TraceReader.group_ids

    def read_slowly(self: TraceReader, query: GroupQuery = GroupQuery(), **limits: int) -> array[int]:  # noqa: B008
        if query.search == "m":
            time.sleep(0.5)
        return read(self, query, **limits)

    monkeypatch.setattr(TraceReader, "group_ids", read_slowly)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        await pilot.press("slash", "m", "x")
        await pilot.pause(0.8)
        await idle(app, pilot)
        assert "no group like this" in shown(app)

    drive(run, test)


def test_a_query_that_nobody_waits_for_is_ended(run: Path) -> None:
    with TraceReader(run / "trace.db") as reader:
        timer = threading.Timer(0.3, reader.interrupt)
        timer.start()
        with pytest.raises(TraceError, match="interrupted"):
            reader._rows(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            )
    reader.interrupt()  # closed: nothing to end
