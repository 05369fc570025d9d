"""The real app over a real recorded run, driven through Textual's pilot."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rwml_tui.__main__ import main
from rwml_tui.app import Dashboard
from rwml_tui.widgets.group_table import GroupTable
from rwml_tui.widgets.run_bar import RunBar
from textual.pilot import Pilot
from textual.widgets import Static

from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import TraceReader, TraceWriter

SIZES = [(80, 24), (120, 40)]
HOSTILE = "\x1b[31m[bold]red[/bold]\x07 \u202eevil \ud800 [@click=app.quit]"


def make_group(step: int, action: str = "go to shelf 1", answers: tuple[str | None, ...] = ()) -> Group:
    answers = answers or (f"a mug at step {step}", "a vase")
    transition = Transition(
        f"t{step}", "alfworld", "g", "find the mug", (Turn("In a room.", "look"),), "At the desk.", action,
        "On the shelf 1, you see a mug 1.", "navigation",
    )  # fmt: skip
    predictions = tuple(
        Prediction(
            Completion((1, 2, 3), (0.0,) * 3, "stop", step),
            f"<think>thought {member}</think>{answer}",
            f"thought {member}",
            answer,
            Score(float(member == 0), 0.875 - member / 2, answer is not None),
            0.5 - member,
            member,
        )
        for member, answer in enumerate(answers)
    )
    return Group(transition, (1,), "prompt", predictions)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    with TraceWriter(folder / "trace.db") as writer:
        writer.start_stage("wm_grpo", 9, "")
        for step in range(5):
            writer.write_step("wm_grpo", step, {"wm/reward": 0.5}, [make_group(step)])
    return folder


def shown(app: Dashboard) -> str:
    """What stands on the screen, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in lines)


def drive(
    run: Path, test: Callable[[Dashboard, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (120, 40)
) -> None:
    """Opens the dashboard, waits for its first frame and hands it to the test."""

    async def session() -> None:
        with TraceReader(run / "trace.db") as reader:
            app = Dashboard(reader)
            async with app.run_test(size=size) as pilot:
                await pilot.pause()
                await test(app, pilot)

    asyncio.run(asyncio.wait_for(session(), 60))


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
        for words in ("predicted 1/2", "similarity 0.875", "reward 1", "advantage +0.50", "thought 0"):
            assert words in screen
        assert "a mug at step 4" in screen
        assert "real" in screen
        await pilot.press("down")
        assert "a mug at step 3" in shown(app)
        await pilot.press("n")
        assert "predicted 2/2" in shown(app)
        assert "a vase" in shown(app)
        await pilot.press("n")
        assert "predicted 1/2" in shown(app)
        await pilot.press("p")
        assert "predicted 2/2" in shown(app)
        assert "advantage -0.50" in shown(app)

    drive(run, test, size)


def test_new_steps_appear_and_the_cursor_stays_on_its_group(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert app.follow
        with TraceWriter(run / "trace.db") as writer:
            writer.write_step("wm_grpo", 5, {}, [make_group(5, "open drawer 1")])
            app.refresh_run()
            await pilot.pause()
            assert "a mug at step 5" in shown(app)  # the newest was selected, so the newest is shown
            await pilot.press("down", "down")
            before = app.query_one(GroupTable).selected
            writer.write_step("wm_grpo", 6, {}, [make_group(6)])
            app.refresh_run()
            await pilot.pause()
            assert app.query_one(GroupTable).selected == before
            assert "a mug at step 3" in shown(app)
            await pilot.press("f")
            writer.write_step("wm_grpo", 7, {}, [make_group(7)])
            app.refresh_run()
            await pilot.pause()
            assert app.query_one(GroupTable).row_count == 7
            await pilot.press("f")
            await pilot.pause()
            assert app.query_one(GroupTable).row_count == 8

    drive(run, test)


def test_the_app_looks_again_by_itself(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_tui.app.REFRESH_SECONDS", 0.05)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        with TraceWriter(run / "trace.db") as writer:
            writer.write_step("wm_grpo", 5, {}, [make_group(5)])
        for _ in range(100):
            await pilot.pause(0.05)
            if "a mug at step 5" in shown(app):
                return
        raise AssertionError("five seconds passed without a look")

    drive(run, test)


def test_a_finished_run_is_not_followed(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        writer.set_status("finished")

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert not app.follow
        assert "finished" in shown(app)

    drive(run, test)


@pytest.mark.parametrize("size", SIZES)
def test_hostile_text_is_shown_not_obeyed(run: Path, size: tuple[int, int]) -> None:
    with TraceWriter(run / "trace.db") as writer:
        group = make_group(9, HOSTILE, (HOSTILE, None, "x" * 100_000, "שלום 👩‍🔬 ﷽", ""))
        writer.write_step("wm_grpo", 9, {}, [group])
        writer.set_status("failed", HOSTILE)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        for press in range(6):
            screen = shown(app)
            assert not set(screen) & {"\x1b", "\x07", "\u202e", "\ud800"}
            if press == 0:
                assert "\\x1b[31m" in screen
                assert "[bold]red" in screen
            if press == 1:
                assert "no <next_state>" in " ".join(screen.split())
            await pilot.press("n")

    drive(run, test, size)


def test_a_run_without_predictions(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "trace.db").close()

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "no predictions yet" in shown(app)
        assert "no step yet" in shown(app)
        await pilot.press("n", "p", "down", "f")

    drive(tmp_path, test)


def test_a_run_deleted_while_open(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        shutil.rmtree(run)
        app.refresh_run()
        await pilot.pause()
        assert "the run was deleted" in str(app.query_one(RunBar).render())
        assert "a mug at step 4" in shown(app)

    drive(run, test)


def test_leaving_while_rows_arrive(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        app._seen = None
        app.refresh_run()  # its messages are still on their way when the session ends

    for _ in range(5):
        drive(run, test)


def test_every_key_in_the_footer_works(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = shown(app)
        for label in ("next member", "previous member", "follow", "quit"):
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
    cases = [
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


def test_the_dashboard_loads_no_trainer(run: Path) -> None:
    code = (
        "import sys, rwml_tui.__main__, rwml_tui.app; "
        "sys.exit(', '.join({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
