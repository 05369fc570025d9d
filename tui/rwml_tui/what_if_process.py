"""Client of the child process that holds model and environment, so that the dashboard does not load them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rwml_lightning.schema import Transition, Turn
from rwml_lightning.trace import PredictionRecord

START_SECONDS = 600.0
ANSWER_SECONDS = 300.0
_LONGEST_LINE = 1 << 26


class WhatIfError(Exception):
    """Raised when a question cannot be answered; the message is one line."""


@dataclass(frozen=True)
class Scene:
    """State of the environment in the child process.

    Args:
        place: Game, seed and actions that lead to the state (keys ``game``, ``seed``, ``actions``), in the form that the child
            process accepts.
        state: The state, as a transition without action and next state.
        admissible: Actions that the environment lists for the state.
        over: Whether the episode has ended.
    """

    place: Mapping[str, Any]
    state: Transition
    admissible: tuple[str, ...]
    over: bool

    def after(self, action: str) -> dict[str, Any]:
        """Return the place to which an action leads."""
        return {**self.place, "actions": [*self.place["actions"], action]}

    def before(self) -> dict[str, Any]:
        """Return the place one turn earlier; the first place has no earlier one and is returned itself."""
        return {**self.place, "actions": self.place["actions"][:-1]}


@dataclass(frozen=True)
class Outcome:
    """Predictions of the model for an action, and the transition that really followed."""

    transition: Transition
    predictions: list[PredictionRecord]


def read_answer(answer: Mapping[str, Any]) -> tuple[Scene, Outcome | None]:
    """Convert a JSON answer of ``python -m rwml_lightning what_if``."""
    turns = tuple(Turn(**turn) for turn in answer["turns"])
    place = answer["place"]
    state = Transition(
        "", "", place["game"], answer["task"], turns, answer["observation"], action="", next_state=""
    )  # fmt: skip
    scene = Scene(place, state, tuple(answer["admissible"]), answer["over"])
    if "transition" not in answer:
        return scene, None
    fields = answer["transition"]
    history = tuple(Turn(**turn) for turn in fields["history"])
    transition = Transition(**{**fields, "history": history})
    return scene, Outcome(transition, [PredictionRecord(**one) for one in answer["predictions"]])


class WhatIfProcess:
    """Sends questions to the child process, one at a time; the first question starts it.

    Args:
        run: Run folder. Its config names model and environment, and its newest weights are used.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.trusted = False
        """Whether the user has confirmed that the run's config may be used."""
        self.weights: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._errors: deque[str] = deque(maxlen=20)
        self._drain: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._numbers = count()

    @property
    def config(self) -> Path:
        """Path of the config with which the child process is started."""
        return self.run / "config.yaml"

    async def ask(
        self, question: Mapping[str, Any], report: Callable[[str], None]
    ) -> tuple[Scene, Outcome | None]:
        """Send a question to the child process and return its answer.

        Args:
            question: Question in the form of :func:`rwml_lightning.commands.what_if.respond`.
            report: Called with the status of the child process until it is ready.

        Raises:
            WhatIfError: The question could not be answered, or the child process ended or did not answer in time.
        """
        async with self._lock:
            await self._ready(report)
            assert self._process is not None
            assert self._process.stdin is not None
            number = next(self._numbers)
            with suppress(ConnectionError):  # the child has ended; reading below raises
                self._process.stdin.write((json.dumps({**question, "id": number}) + "\n").encode())
                await self._process.stdin.drain()
            while (answer := await self._read(ANSWER_SECONDS)).get("id") != number:
                pass  # the answer to an earlier, cancelled question
        if "error" in answer:
            raise WhatIfError(answer["error"])
        return read_answer(answer)

    async def close(self) -> None:
        """End the child process."""
        process, self._process, self.weights = self._process, None, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._drain is not None:
            self._drain.cancel()

    async def _ready(self, report: Callable[[str], None]) -> None:
        if self._process is None:
            report("starting")
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rwml_lightning", "what_if"),
                *("--config", str(self.config), "--weights", str(self.run)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
            )
            self._errors.clear()
            self._drain = asyncio.create_task(self._keep_errors(self._process))
        while self.weights is None:
            message = await self._read(START_SECONDS)
            report(message.get("status", ""))
            self.weights = message.get("ready")

    async def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.close()
            raise WhatIfError(f"no answer in {seconds:.0f} s; the process was ended") from None
        if not line:
            if self._drain is not None:
                await asyncio.wait([self._drain], timeout=5)
            await self.close()
            raise WhatIfError(self._errors[-1] if self._errors else "the process with the model ended")
        return json.loads(line)

    async def _keep_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._errors.append(text)
