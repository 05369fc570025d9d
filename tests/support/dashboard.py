"""Helpers that record a run, open the dashboard on it, and serve it as a web page."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from rwml_tui.app import Dashboard
from textual.pilot import Pilot

from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import TraceReader

SIZES = [(80, 24), (120, 40)]


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
    """Return the text on the screen."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in lines)


async def idle(app: Dashboard, pilot: Pilot[None]) -> None:
    """Wait until all workers and messages of the app are finished."""
    await pilot.pause()
    while any(not worker.is_finished for worker in app.workers):
        await pilot.pause(0.01)
    await pilot.pause()


async def press(app: Dashboard, pilot: Pilot[None], *keys: str) -> str:
    """Press keys one after another; return the text on the screen."""
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
    """Open the dashboard on a run folder and others to compare, wait for its first frame, and run the test on it."""

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
    """Replace ``python -m rwml_lightning`` by a program, and change to the folder."""
    package = folder / "elsewhere" / "rwml_lightning"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(folder)


@dataclass
class Served:
    """A served page: id of its process, port, token, and log of its terminal output."""

    pid: int
    port: int
    token: str
    log: Path

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cookie(self) -> str:
        return f"rwml-tui-{self.port}={self.token}"


@contextmanager
def serving(run: Path, log: Path, port: int) -> Iterator[Served]:
    """Run ``rwml-tui --serve`` in its own process, and kill it with all of its children at the end."""
    command = [sys.executable, "-m", "rwml_tui", "--serve", "--port", str(port), str(run)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        for _ in range(600):
            printed = re.search(rf"http://127\.0\.0\.1:{port}/\?token=(\S+)", log.read_text())
            if printed and accepts(port):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            raise AssertionError(f"no address in a minute: {log.read_text()}")
        yield Served(process.pid, port, printed.group(1), log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(20)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
