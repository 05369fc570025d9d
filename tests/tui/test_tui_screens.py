"""Screens over the tabs: over training, control, export, help; and the curves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_tui.app import Dashboard
from rwml_tui.formats import export
from rwml_tui.panes.curves import Curves, labelled, logarithmic, smoothed, thinned
from rwml_tui.screens.export import Export
from textual.pilot import Pilot
from textual.widgets import Input

from rwml_lightning.trace import TraceReader, TraceWriter
from support.dashboard import drive, make_group, press, shown
from support.hostile import HOSTILE, assert_harmless


@pytest.mark.heavy
def test_the_same_transition_over_training(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        for step in (5, 6):
            group = make_group(0, answers=(f"better at step {step}",))
            writer.write_step("wm_grpo", step, {}, [group])

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "o")
        for words in ("a mug at step 0", "better at step 5", "better at step 6", "best prediction"):
            assert words in screen
        await press(app, pilot, "up", "up", "enter")
        assert "step 0" in shown(app)
        assert app.query_one("#groups").cursor == 6  # type: ignore[attr-defined]

    drive(run, test)


@pytest.mark.heavy
def test_a_command_is_confirmed_sent_and_heard(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "Really save a checkpoint now?" in await press(app, pilot, "c", "enter")
        await press(app, pilot, "down", "up")
        assert app.reader.commands() == []
        assert "not heard yet" in await press(app, pilot, "enter", "enter")
        with TraceWriter(run / "trace.db") as writer:  # as the trainer that went on with the run
            (command,) = app.reader.commands()
            assert command.command == "checkpoint"
            writer.acknowledge(command.id, "saved x.ckpt")
        for _ in range(100):
            await pilot.pause(0.05)
            if "heard: saved x.ckpt" in shown(app):
                break
        else:
            raise AssertionError("no answer in five seconds")
        await press(app, pilot, "enter", "escape", "escape")
        assert len(app.screen_stack) == 1
        assert len(app.reader.commands()) == 1

    drive(run, test)


@pytest.mark.heavy
def test_a_run_that_ended_hears_no_command(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        writer.set_status("finished")

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "This run has ended" in await press(app, pilot, "c")

    drive(run, test)


def test_groups_are_written(run: Path, tmp_path: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        writer.write_step("wm_grpo", 9, {}, [make_group(9, HOSTILE, (HOSTILE, None, "```"))])
        writer.write_step(
            "wm_grpo", 10, {}, [make_group(10, "`=x`", ("=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1"))]
        )
    with TraceReader(run / "trace.db") as reader:
        ids = reader.group_ids()
    for ending in (".jsonl", ".csv", ".md"):
        export(run / "trace.db", ids, tmp_path / f"all{ending}")
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["group"]["step"] for row in rows] == [10, 9, 4, 3, 2, 1, 0]
    assert rows[1]["transition"]["action"] == HOSTILE
    assert rows[2]["predictions"][0]["next_state"] == "a mug at step 4"
    with (tmp_path / "all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 + 3 + 5 * 2
    formulas = [line["predicted"] for line in lines[:5]]
    assert formulas == ["'=cmd|' /C calc'!A0", "'+1", "'-1", "'@x", "\\t=1"]
    assert (lines[8]["predicted"], lines[8]["similarity"], lines[8]["member"]) == (
        "a mug at step 4",
        "0.875",
        "0",
    )
    text = (tmp_path / "all.md").read_text()
    for ending in (".csv", ".md"):
        assert_harmless((tmp_path / f"all{ending}").read_text())
    assert (tmp_path / "all.jsonl").read_text().isascii()
    assert "## `wm_grpo` step 10, `train`: `` `=x` ``" in text
    assert "````\n```\n````" in text
    assert "a mug at step 0" in text
    with pytest.raises(ValueError, match="exists; name another file"):
        export(run / "trace.db", ids, tmp_path / "all.md")
    with pytest.raises(ValueError, match="unknown file extension; use one of"):
        export(run / "trace.db", ids, tmp_path / "all.xls")


@pytest.mark.heavy
def test_the_list_is_exported_from_the_screen(run: Path, tmp_path: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        await press(app, pilot, "e", "down", "space")
        assert isinstance(app.screen, Export)
        field = app.screen.query_one("#file", Input)
        field.focus()
        (tmp_path / "file").touch()
        field.value = str(tmp_path / "file" / "x.csv")
        assert "File exists" in " ".join((await press(app, pilot, "enter")).split())
        field.value = str(tmp_path / "x.csv")
        await press(app, pilot, "enter")
        assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 5 * 2
        assert len(app.screen_stack) == 1

    drive(run, test)


@pytest.mark.heavy
def test_curves_are_drawn_smoothed_and_as_logarithms(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        for step in range(10, 30):
            writer.write_step(
                "wm_grpo", step, {"wm/reward": step / 30, "time/update": 2.0, "time/generate": 1.0}
            )

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "2")
        assert "wm/reward 0.967" in screen
        assert "time/generate 1  time/update 2" in screen
        assert "log10" in str(await press(app, pilot, "l") and app.query_one(Curves).border_subtitle)
        await press(app, pilot, "m")
        assert "smoothed 0.6" in str(app.query_one(Curves).border_subtitle)
        assert "a mug at step 4" in await press(app, pilot, "1")

    drive(run, test)


@pytest.mark.heavy
def test_curves_of_a_run_without_steps(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "trace.db").close()

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "no step yet" in await press(app, pilot, "2", "l", "m")

    drive(tmp_path, test)


@pytest.mark.heavy
def test_every_key_stands_in_the_help(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "question_mark")
        for words in ("next prediction", "Unfold", "member"):
            assert words in " ".join(screen.split())
        assert "next prediction" not in await press(app, pilot, "question_mark")

    drive(run, test, (160, 60))


def test_smoothing_is_a_mean_of_what_was() -> None:
    assert smoothed([(0, 1.0), (1, 3.0)], 0.5) == [(0, 1.0), (1, pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75))]
    assert smoothed([(0, 1.0), (1, float("nan")), (2, 2.0)], 0.0) == [(0, 1.0), (2, 2.0)]
    assert logarithmic([(0, 100.0), (1, 0.0), (2, 0.1)]) == [(0, 2.0), (2, -1.0)]


@given(st.lists(st.floats(-5, 5), max_size=50), st.integers(1, 20))
def test_thinning_keeps_the_mean_and_the_last_step(values: list[float], most: int) -> None:
    curve = list(enumerate(values))
    thin = thinned(curve, most)
    assert len(thin) <= most
    if curve:
        assert thin[-1][0] == curve[-1][0]
        assert min(values) - 1e-9 <= min(v for _, v in thin) <= max(v for _, v in thin) <= max(values) + 1e-9


def test_labels_say_what_differs() -> None:
    curve = [(0, 1.0)]
    assert set(labelled({("a", "s", "m"): curve})) == {"m"}
    assert set(labelled({("a", "s", "m"): curve, ("b", "s", "m"): curve})) == {"a", "b"}
    assert set(labelled({("a", "s", "m"): curve, ("a", "t", "n"): curve})) == {"s m", "t n"}
