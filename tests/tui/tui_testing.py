"""A recorded run, and how tests drive the real app over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from rwml_tui.app import Dashboard
from textual.pilot import Pilot

from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import TraceReader

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


def shown(app: Dashboard) -> str:
    """What stands on the screen, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in lines)


async def idle(app: Dashboard, pilot: Pilot[None]) -> None:
    """Waits until nothing is under way any more."""
    await pilot.pause()
    while any(not worker.is_finished for worker in app.workers):
        await pilot.pause(0.01)
    await pilot.pause()


async def press(app: Dashboard, pilot: Pilot[None], *keys: str) -> str:
    """Presses keys, one after another, and gives the screen."""
    for key in keys:
        await pilot.press(key)
        await idle(app, pilot)
    return shown(app)


def drive(
    run: Path,
    test: Callable[[Dashboard, Pilot[None]], Awaitable[None]],
    size: tuple[int, int] = (120, 40),
    limit: float = 60,
    others: Sequence[Path] = (),
) -> None:
    """Opens the dashboard on a run folder, with others to compare, waits for its first frame and hands it to the test."""

    async def session() -> None:
        with ExitStack() as stack:
            readers = {
                folder.name: stack.enter_context(TraceReader(folder / "trace.db"))
                for folder in (run, *others)
            }
            app = Dashboard(readers)
            async with app.run_test(size=size) as pilot:
                await idle(app, pilot)
                await test(app, pilot)

    asyncio.run(asyncio.wait_for(session(), limit))


def put_in_place(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the place of ``python -m rwml_lightning``; it runs in the folder."""
    package = folder / "elsewhere" / "rwml_lightning"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(folder)
