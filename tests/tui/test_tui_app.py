"""The real app over a real recorded run, driven through Textual's pilot."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rwml_tui.__main__ import main
from rwml_tui.app import Dashboard
from rwml_tui.widgets.group_table import GroupTable
from rwml_tui.widgets.run_bar import RunBar
from textual.pilot import Pilot
from textual.widgets import Static

from rwml_lightning.trace import TraceWriter
from support.dashboard import SIZES, drive, idle, make_group, press, shown


@pytest.mark.heavy
@pytest.mark.parametrize("size", SIZES)
def test_prediction_and_reality_stand_side_by_side(run: Path, size: tuple[int, int]) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = shown(app)
        for words in (
            "first",
            "running",
            "wm_grpo",
            "step 4/9",
            "last record",
            "navigation",
            "go to shelf 1",
        ):
            assert words in screen
        for words in ("predicted 1/2", "similarity 0.875", "reward 1", "advantage +0.50", "thought 2 words"):
            assert words in screen
        assert "a mug at step 4" in screen
        assert "real" in screen
        assert "thought 0" in await press(app, pilot, "t")
        assert "a mug at step 3" in await press(app, pilot, "down")
        await pilot.press("n")
        assert "predicted 2/2" in shown(app)
        assert "a vase" in shown(app)
        await pilot.press("n")
        assert "predicted 1/2" in shown(app)
        await pilot.press("p")
        assert "predicted 2/2" in shown(app)
        assert "advantage -0.50" in shown(app)

    drive(run, test, size)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["n" * 200, "世" * 80])
@pytest.mark.parametrize("size", SIZES)
def test_a_long_name_of_a_run_leaves_room_for_its_state(run: Path, size: tuple[int, int], name: str) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        bar = shown(app).splitlines()[0]
        assert name[:7] in bar.replace(" ", "")
        for words in ("…", "running", "wm_grpo", "step 4/9", "last record"):
            assert words in bar

    drive(run.rename(run.with_name(name)), test, size)


@pytest.mark.heavy
def test_new_steps_appear_and_the_cursor_stays_on_its_group(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert app.follow
        with TraceWriter(run / "trace.db") as writer:
            writer.write_step("wm_grpo", 5, {}, [make_group(5, "open drawer 1")])
            await app.refresh_run()
            await idle(app, pilot)
            assert "a mug at step 5" in shown(app)  # the newest was selected, so the newest is shown
            await pilot.press("down", "down")
            before = app.query_one(GroupTable).selected
            writer.write_step("wm_grpo", 6, {}, [make_group(6)])
            await app.refresh_run()
            await idle(app, pilot)
            assert app.query_one(GroupTable).selected == before
            assert "a mug at step 3" in shown(app)
            await pilot.press("f")
            writer.write_step("wm_grpo", 7, {}, [make_group(7)])
            await app.refresh_run()
            await idle(app, pilot)
            assert len(app.query_one(GroupTable)) == 7
            await press(app, pilot, "f")
            assert len(app.query_one(GroupTable)) == 8

    drive(run, test)


@pytest.mark.heavy
def test_the_app_looks_again_by_itself(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_tui.app.REFRESH_SECONDS", 0.05)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        with TraceWriter(run / "trace.db") as writer:
            writer.write_step("wm_grpo", 5, {}, [make_group(5)])
        for _ in range(100):
            await pilot.pause(0.05)
            if "a mug at step 5" in shown(app):
                break
        assert "a mug at step 5" in shown(app), "five seconds passed without a look"

    drive(run, test)


@pytest.mark.heavy
def test_a_finished_run_is_not_followed(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        writer.set_status("finished")

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert not app.follow
        assert "finished" in shown(app)

    drive(run, test)


@pytest.mark.heavy
def test_without_colours_differences_are_still_marked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        segments = [s for strip in app.screen._compositor.render_strips() for s in strip]
        filtered = [
            segment
            for strip in app.screen._compositor.render_strips()
            for segment in strip.apply_filter(app._filters[0], app.screen.background_colors[1])
        ]
        assert {s.text for s in segments} == {s.text for s in filtered}
        colours = {
            colour for s in filtered if s.style for colour in (s.style.color, s.style.bgcolor) if colour
        }
        for colour in colours:
            red, green, blue = colour.get_truecolor()
            assert red == green == blue
        marks = [s.style for s in filtered if s.style and s.text.strip()]
        assert any(style.strike for style in marks), "predicted and not real"
        assert any(style.underline for style in marks), "real and not predicted"
        assert any(style.reverse or style.bold for style in marks)

    drive(run, test)


@pytest.mark.heavy
def test_a_run_without_predictions(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "trace.db").close()

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "no predictions yet" in shown(app)
        assert "no step yet" in shown(app)
        await pilot.press("n", "p", "down", "f")

    drive(tmp_path, test)


@pytest.mark.heavy
def test_a_run_deleted_while_open(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        shutil.rmtree(run)
        await app.refresh_run()
        await idle(app, pilot)
        assert "the run was deleted" in str(app.query_one(RunBar).render())
        assert "a mug at step 4" in shown(app)

    drive(run, test)


@pytest.mark.heavy
def test_leaving_while_rows_arrive(run: Path) -> None:
    left: list[Dashboard] = []

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        left.append(app)
        app._seen = None
        await app.refresh_run()  # its messages are still on their way when the session ends

    for _ in range(5):
        drive(run, test)
    assert [(app.is_running, app.return_code or 0) for app in left] == [(False, 0)] * 5


@pytest.mark.heavy
def test_every_key_in_the_footer_works(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = shown(app)
        for label in ("member", "thinking", "find", "sort", "export"):
            assert label in screen
        assert app.query_one("#score", Static).size.height == 1
        await pilot.press("q")
        assert not app.is_running

    drive(run, test, (80, 24))


def test_no_run_and_bad_files_are_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database\n" * 100)
    TraceWriter(tmp_path / "damaged" / "trace.db").close()
    with sqlite3.connect(tmp_path / "damaged" / "trace.db") as db:
        db.execute("UPDATE run SET heartbeat = 'x'")
    db.close()
    cases = [
        (["damaged"], "heartbeat of a RunInfo holds 'x'"),
        ([], "no run under"),
        (["absent"], "no such file"),
        (["empty.db"], "empty"),
        (["text.db"], "damaged"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.heavy
def test_the_dashboard_loads_no_trainer(run: Path) -> None:
    code = (
        "import sys, rwml_tui.__main__, rwml_tui.app; "
        "sys.exit(', '.join({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
