"""What if: the dashboard, the child with model and environment, and a run that the trainer recorded."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from rwml_tui.app import Dashboard
from rwml_tui.screens.what_if import WhatIf
from rwml_tui.trust import named_in
from rwml_tui.what_if_process import WhatIfError, WhatIfProcess
from textual.pilot import Pilot

from support.dashboard import drive, idle, press, put_in_place, shown


@pytest.mark.slow
def test_another_action_in_a_recorded_state(recorded_run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        chosen = app.query_one("#groups").selected  # type: ignore[attr-defined]
        detail = app.reader.group(chosen)
        assert detail is not None
        screen = await press(app, pilot, "w")
        for words in (
            "data.environment.id: support.environments.RoomsEnv",
            "support.rewards.LetterReward",
            "config.yaml",
        ):
            assert words in screen
        screen = await press(app, pilot, "y")
        assert isinstance(app.screen, WhatIf)
        assert detail.transition.observation in screen
        assert "go on" in screen
        assert app._model.weights is not None
        assert app._model.weights.endswith("export")
        screen = await press(app, pilot, *"fly", "enter")
        for words in ("Nothing happens.", "> fly", "predicted 1/4", "similarity"):
            assert words in screen
        assert "predicted 2/4" in await press(app, pilot, "n")
        screen = await press(app, pilot, "g")
        assert "> fly" in screen  # a past turn now
        assert "predicted 1/4" not in screen
        turn = len(detail.transition.history) + 1
        assert f"turn {turn + 1} " in screen
        screen = await press(app, pilot, "escape", "w")
        assert f"turn {turn} " in screen
        assert "predicted 1/4" in await press(app, pilot, "tab", "down", "enter")
        assert "Room 0 of v" in await press(app, pilot, "r")
        await press(app, pilot, "escape")
        assert len(app.screen_stack) == 1

    drive(recorded_run, test, limit=180)


@pytest.mark.heavy
def test_a_run_that_cannot_be_asked_says_why(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screen = await press(app, pilot, "w")
        assert "not answered: " in screen
        assert "config.yaml" in screen
        await pilot.press("escape")
        assert len(app.screen_stack) == 1

    drive(run, test, limit=180)  # the child is the real one, which imports the trainer


@pytest.mark.heavy
def test_the_child_ends_with_the_dashboard(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(
        "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)", tmp_path, monkeypatch
    )
    children: list[asyncio.subprocess.Process] = []

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        await pilot.press("w")
        for _ in range(200):
            if (tmp_path / "started").exists():
                break
            await asyncio.sleep(0.05)
        await pilot.press("escape")
        await idle(app, pilot)
        assert len(app.screen_stack) == 1
        child = app._model._process
        assert child is not None
        assert child.returncode is None
        children.append(child)

    drive(run, test)
    assert children[0].returncode == -9


@pytest.mark.heavy
def test_a_child_that_ends_or_hangs_is_an_error_and_is_started_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import json, pathlib, sys, time
print(json.dumps({"ready": "w"}), flush=True)
first = not pathlib.Path("again").exists()
pathlib.Path("again").touch()
sys.stdin.readline()
if first:
    sys.exit("memory ran out")
time.sleep(60)
"""
    put_in_place(code, tmp_path, monkeypatch)
    monkeypatch.setattr("rwml_tui.what_if_process.ANSWER_SECONDS", 1.0)

    async def session() -> None:
        process = WhatIfProcess(run)
        with pytest.raises(WhatIfError, match="memory ran out"):
            await process.ask({"begin": 0}, lambda _: None)
        with pytest.raises(WhatIfError, match="no answer in 1 s"):
            await process.ask({"begin": 0}, lambda _: None)
        await process.close()

    asyncio.run(asyncio.wait_for(session(), 60))


HOSTILE_CONFIG = """
data:
  environment: {id: "os.system\\e[31m", kwargs: {command: touch called}}
  predictions: {reward: {class_path: "evil.Reward"}}
trainer:
  callbacks: [{class_path: "[@click=app.quit]evil[/]"}]
"""


@pytest.mark.heavy
def test_nothing_of_a_config_is_run_before_a_person_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(
        "import pathlib; pathlib.Path('started').touch(); raise SystemExit('ended')", tmp_path, monkeypatch
    )
    (run / "config.yaml").write_text(HOSTILE_CONFIG)

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        for leave in ("escape", "n"):
            screen = await press(app, pilot, "w", "enter")
            for words in (
                "data.environment.id: os.system\\x1b[31m", "data.predictions.reward.class_path: evil.Reward",
                "trainer.callbacks.0.class_path: [@click=app.quit]evil[/]",
            ):  # fmt: skip
                assert words in screen
            await press(app, pilot, leave)
            assert len(app.screen_stack) == 1
        assert not (tmp_path / "started").exists()
        assert "not answered: ended" in await press(app, pilot, "w", "y")
        assert (tmp_path / "started").exists()
        assert "not answered: ended" in await press(app, pilot, "escape", "w")  # asked once for this run

    drive(run, test)


@pytest.mark.heavy
def test_a_config_says_what_it_names(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    deep = "a: &a [x]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghijklmnopqrstuv")
    )
    config.write_text(
        f"{deep}model: m\ndata: {{generator: {{init_args: {{model: n, base_url: http://x}}}}}}\n"
    )
    assert named_in(config) == [
        ("model", "m"),
        ("data.generator.init_args.model", "n"),
        ("data.generator.init_args.base_url", "http://x"),
    ]
    for broken in ("a: [", "[" * 5000, "\x00"):
        config.write_text(broken)
        ((name, reason),) = named_in(config)
        assert name == "config.yaml"
        assert reason.startswith("cannot be read")


@pytest.mark.slow
def test_a_recorded_run_has_its_collection_its_training_and_its_evaluations(recorded_run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        assert [stage.stage for stage in app.reader.stages()] == ["collect", "wm_grpo"]
        screen = shown(app)
        for words in ("finished", "wm_grpo", "held_out", "train", "similarity"):
            assert words in screen
        screen = await press(app, pilot, "3")
        for words in ("4 episodes", "collect", "Room 0 of"):
            assert words in screen
        assert "reward" in await press(app, pilot, "2")
        await press(app, pilot, "1", "space")  # the replay begins with the collection
        assert "replay 1/" in shown(app)
        assert (
            "no predictions" in shown(app) or "0 groups" in shown(app) or "no group like this" in shown(app)
        )

    drive(recorded_run, test)
