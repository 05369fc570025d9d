"""Every screen as text, at two sizes; ``pytest tests/tui/test_tui_snapshots.py --snapshot-update`` takes them anew."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rwml_tui.app import Dashboard
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot

from rwml_lightning.schema import Episode, Turn
from rwml_lightning.trace import TraceReader, TraceWriter
from support.dashboard import drive, make_group, press, put_in_place

pytestmark = pytest.mark.heavy

SIZES = [(80, 24), (160, 48)]
SCREENS = {
    "predictions": "",
    "thinking": "t n",
    "found": "slash m u g space k i n d = n a v i g a t i o n enter",
    "mistyped": "slash k i n d >",
    "sorted": "s s s",
    "over training": "o",
    "control": "c enter",
    "export": "e",
    "compare": "v",
    "curves": "2",
    "curves, smooth, logarithmic": "2 l m",
    "episodes": "3",
    "episode, thinking": "3 down t",
    "replay": "comma comma",
    "help": "question_mark",
    "what if": "w",
    "what if, answered": "w d r o p enter",
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time of day, which then stands."""

    def set_clock(now: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now)

    set_clock(1_000_000)
    return set_clock


@pytest.fixture
def runs(tmp_path: Path, clock: Callable[[float], None]) -> list[Path]:
    """A run of six steps with episodes, and one to compare it with."""
    turns = (
        Turn("At the desk.", "go to shelf 1", reward=0.5, thinking="the mug may be there"),
        Turn("On the shelf 1, you see a mug 1.", "fly away", valid=False),
    )
    episodes = [
        Episode("t2", "alfworld", "game-7", "find the mug", 0, turns, "You won.", success=True),
        Episode("e", "alfworld", "game-8", "find the mug", 0, turns[1:], "Nothing happens.", False, True),
    ]
    for name, better in (("first", 0.05), ("second", 0.02)):
        with TraceWriter(tmp_path / name / "trace.db") as writer:
            writer.start_stage("wm_grpo", 9, "")
            for step in range(6):
                clock(1_000_000 + 10 * step)
                metrics = {"wm/reward": 0.2 + better * step, "wm/similarity": 0.5, "train/kl": 0.01 * step}
                groups = [make_group(step), make_group(0, answers=("a lamp", f"on the shelf {step}", None))]
                writer.write_step("wm_grpo", step, metrics, groups)
            writer.write_episodes("wm_grpo", 5, episodes)
    clock(1_000_065)
    return [tmp_path / "first", tmp_path / "second"]


def answer_as_the_model_does(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that answers always the same; the real one is asked in ``test_tui_what_if``."""
    with TraceReader(run / "trace.db") as reader:
        group = reader.group(reader.group_ids()[0])
        assert group is not None
        predictions = [asdict(one) for one in reader.predictions(group.summary.id)]
    transition = asdict(replace(group.transition, action="drop", next_state="You drop the mug 1."))
    scene = {
        "place": {"game": "g", "seed": 1, "actions": ["look"]}, "task": "find the mug", "over": False,
        "turns": [asdict(Turn("In a room.", "look"))], "observation": "At the desk.",
        "admissible": [f"{verb} {number}" for verb in ("go to shelf", "open drawer", "drop mug") for number in (1, 2)],
    }  # fmt: skip
    answers = [scene, {**scene, "transition": transition, "predictions": predictions}]
    code = f"""
import json, sys
print(json.dumps({{"ready": "export"}}), flush=True)
for line, answer in zip(sys.stdin, json.loads({json.dumps(answers)!r})):
    print(json.dumps({{**answer, "id": json.loads(line)["id"]}}), flush=True)
sys.stdin.read()
"""
    put_in_place(code, folder, monkeypatch)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("name", SCREENS)
def test_every_screen_looks_as_it_did(
    name: str,
    size: tuple[int, int],
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
) -> None:
    if name.startswith("what if"):
        answer_as_the_model_does(runs[0], tmp_path, monkeypatch)
    screens: list[str] = []

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        screens.append(await press(app, pilot, *SCREENS[name].split()))

    drive(runs[0], test, size, others=runs[1:])
    lines = [line.rstrip() for line in screens[0].splitlines()]
    assert len(lines) == size[1]
    assert "\n".join(lines) == snapshot
