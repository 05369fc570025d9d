"""Replay, several runs, and episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rwml_tui.__main__ import named
from rwml_tui.app import Dashboard
from rwml_tui.panes.curves import Curves, read_curves
from rwml_tui.replay import all_steps, moment_at, stride
from rwml_tui.widgets.group_table import GroupTable
from textual.pilot import Pilot

from rwml_lightning.schema import Episode, Turn
from rwml_lightning.trace import TraceReader, TraceWriter
from support.dashboard import drive, idle, make_group, press, shown


def test_a_moment_holds_what_was_recorded_by_then(run: Path) -> None:
    with TraceWriter(run / "trace.db") as writer:
        writer.start_stage("policy_grpo", 2, "")
        writer.write_step("policy_grpo", 1, {"policy/return": 1.0}, [make_group(1), make_group(2)])
    with TraceReader(run / "trace.db") as reader:
        steps = all_steps(reader)
        assert [(s.stage, s.step) for s in steps] == [*(("wm_grpo", n) for n in range(5)), ("policy_grpo", 1)]
        moments = [moment_at(reader, steps, number) for number in range(-1, 7)]
        assert [m and m.last_group for m in moments] == [1, 1, 2, 3, 4, 5, 7, None]
        early = moments[3]
        assert early is not None
    curves = read_curves({"a": run / "trace.db"}, early.step)
    assert curves == {"reward": {"wm/reward": [(0, 0.5), (1, 0.5), (2, 0.5)]}}
    assert stride(25) == 1
    assert stride(12_000) == 100


@pytest.mark.heavy
def test_a_run_is_played_as_if_it_were_live(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_tui.app.TICK_SECONDS", 0.3)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        table = app.query_one(GroupTable)
        screen = await press(app, pilot, "comma", "comma")
        assert "replay 3/5" in screen
        assert "a mug at step 2" in screen
        assert len(table) == 3
        assert "step 2/9" in screen
        await press(app, pilot, "2")
        assert app.query_one(Curves).until == all_steps(app.reader)[2]
        await press(app, pilot, "1", "full_stop", "full_stop", "full_stop")
        assert app.moment is None
        assert len(table) == 5
        seen = []
        await pilot.press("space")
        for _ in range(400):
            if app.moment is None:
                break
            seen.append(app.moment.number)
            await pilot.pause(0.01)
        await idle(app, pilot)
        visited = list(dict.fromkeys(seen))
        assert visited == list(range(visited[0], 5))  # the first may pass before anyone looks
        assert visited[0] <= 2
        assert len(table) == 5
        assert "replay" not in shown(app).splitlines()[0]

    drive(run, test)


@pytest.mark.heavy
def test_runs_are_compared_transition_by_transition(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    with TraceWriter(other / "trace.db") as writer:
        writer.start_stage("wm_grpo", 9, "")
        writer.write_step("wm_grpo", 3, {"wm/reward": 0.25}, [make_group(4, answers=("a lamp 7",))])

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "v")
        for words in ("first", "second", "a lamp 7", "a mug at step 4", "On the shelf 1, you see a mug 1."):
            assert words in screen
        assert "never predicted" in await press(app, pilot, "escape", "down", "v")
        await press(app, pilot, "escape", "2")
        assert "first 0.5  second 0.25" in shown(app)

    drive(run, test, others=[other])


@pytest.mark.heavy
def test_one_run_offers_no_comparison(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        await press(app, pilot, "v")
        assert len(app.screen_stack) == 1

    drive(run, test)


def test_runs_with_equal_names_carry_their_paths() -> None:
    paths = [Path("a/run/trace.db"), Path("b/run/trace.db"), Path("b/other/trace.db")]
    assert named(paths) == {"a/run": paths[0], "b/run": paths[1], "other": paths[2]}


@pytest.mark.heavy
def test_episodes_turn_by_turn_beside_what_was_predicted(run: Path) -> None:
    turns = (
        Turn("At the desk.", "go to shelf 1", reward=0.5, thinking="the mug may be there"),
        Turn("On the shelf 1, you see a mug 1.", "fly away", valid=False),
    )
    won = Episode("t2", "alfworld", "game-7", "find the mug", 0, turns, "You won.", success=True)
    lost = Episode("e", "alfworld", "game-8", "find the mug", 0, turns[1:], "Nothing happens.", False, True)
    group = make_group(7, answers=("On the shelf 1, you see a cup.",))
    group = replace(group, transition=replace(group.transition, transition_id="t2/0"))
    with TraceWriter(run / "trace.db") as writer:
        writer.write_step("wm_grpo", 7, {}, [group])
        writer.start_stage("policy_grpo", 2, "")
        writer.write_episodes("policy_grpo", 1, [won])
        writer.write_episodes("policy_grpo", 2, [lost])

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "3")
        for words in ("2 episodes", "solved", "cut off", "game-8", "fly away  (not valid here)"):
            assert words in screen
        screen = await press(app, pilot, "down", "t")
        for words in (
            "game-7",
            "reward 0.5",
            "the mug may be there",
            "predicted: On the shelf 1, you see a cup.",
        ):
            assert words in screen

    drive(run, test)


@pytest.mark.heavy
def test_a_run_without_episodes_says_so(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert "no episodes in this run yet" in await press(app, pilot, "3", "t", "down")

    drive(run, test)


@pytest.mark.heavy
def test_dark_and_light(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        before = app.current_theme.dark
        await press(app, pilot, "d")
        assert app.current_theme.dark != before

    drive(run, test)
