"""Environments with behaviour that a test chooses. Worker processes import this module by name."""

from __future__ import annotations

import logging
import os
import secrets
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium


class RoomsEnv(gymnasium.Env[str, str]):
    """Walk through rooms in a row. The start of a game's name chooses a failure.

    Args:
        games: Task ids by split. A game "broken..." raises an error at its second step, "once..." does so only the first
            time, "asleep..." hangs at its reset, "blank..." has empty observations, "cut..." is truncated at its second
            step, "both..." is truncated and terminated there, and "fickle..." is truncated at its first step when it is
            played again.
        folder: Folder where the environment records which games have failed.
        length: Number of rooms.
    """

    def __init__(self, games: dict[str, list[str]] | None = None, folder: str = "", length: int = 4) -> None:
        self.tasks = games
        self.folder = Path(folder)
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.game = (options or {}).get("task") or ""
        self.room = 0
        self.num_steps = 0
        self.over = False
        if self.game.startswith("fickle"):
            played = self.folder / f"{self.game}.played"
            self.cut_at = 1 if played.exists() else None
            played.touch()
        else:
            self.cut_at = 2 if self.game.startswith(("cut", "both")) else None
        if self.game.startswith("asleep"):
            time.sleep(600)
        self.colour = int(self.np_random.integers(1000))
        return self._look(), self._info("look")

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert not self.over, f"{self.game} is stepped after its end"
        self.num_steps += 1
        failed = self.folder / f"{self.game}.failed"
        if self.room == 1 and self.game.startswith("broken" if failed.exists() else ("broken", "once")):
            failed.touch()
            raise RuntimeError(f"{self.game} is broken")
        if action not in self._actions():
            return "Nothing happens.", 0.0, False, False, self._info("nothing_happens")
        self.room += {"go on": 1, "go back": -1, "wait": 0}[action]
        cut = self.num_steps == self.cut_at
        done = self.room == self.length - 1 or (cut and self.game.startswith("both"))
        self.over = done or cut
        return self._look(), float(done), done, cut, self._info("move")

    def walkthrough(self) -> tuple[str, ...]:
        return ("go on",) * (self.length - 1)

    def _look(self) -> str:
        return (
            "" if self.game.startswith("blank") else f"Room {self.room} of {self.game}, colour {self.colour}."
        )

    def _actions(self) -> list[str]:
        return ["go on", "wait"] + (["go back"] if self.room else [])

    def _info(self, kind: str) -> dict[str, Any]:
        return {"task": f"cross {self.game}", "admissible_actions": self._actions(), "kind": kind}


class UnreliableRoomsEnv(RoomsEnv):
    """Raises an error in one of twenty steps, at random and not by the seed, and leaves a file for each error."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if secrets.randbelow(20) == 0:
            (self.folder / f"error-{secrets.token_hex(8)}").touch()
            raise RuntimeError("the connection was lost")
        return super().step(action)


class AnsweringEnv(gymnasium.Env[Any, str]):
    """Return given values from ``reset`` and ``step``, whatever the action.

    Args:
        first: Return value of ``reset``.
        later: Return values of the steps, in order; the last one repeats.
        plan: Return value of ``walkthrough``.
        tasks: Task ids.
    """

    def __init__(
        self,
        first: Any = ("hello", {}),
        later: Any = ("bye", 0.0, False, False, {}),
        plan: Any = (),
        tasks: Any = None,
    ) -> None:
        self.first = first
        self.later = later if isinstance(later, list) else [later]
        self.plan = plan
        self.tasks = tasks
        self.num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.num_steps = 0
        return self.first

    def step(self, action: str) -> Any:
        self.num_steps += 1
        return self.later[min(self.num_steps, len(self.later)) - 1]

    def walkthrough(self) -> Any:
        return self.plan


class ScriptedEnv(gymnasium.Env[str, str]):
    """Answer with the greeting and the action. The actions "raise", "hang", "die", "warn" and "unpicklable" cause a fault."""

    def __init__(self, greeting: str = "hello", hang_on_reset: bool = False) -> None:
        self.greeting = greeting
        self.hang_on_reset = hang_on_reset
        self.episodes = 0
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        if self.hang_on_reset:
            time.sleep(600)
        self.episodes += 1
        self.steps = 0
        task = (options or {}).get("task")
        draw = int(self.np_random.integers(1_000_000))
        return f"{self.greeting} {task}", {"pid": os.getpid(), "episodes": self.episodes, "draw": draw}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action == "raise":
            raise KeyError("broken on purpose")
        if action == "hang":
            time.sleep(600)
        if action == "die":
            os._exit(3)
        if action == "warn":
            warnings.warn("\x1b]52;c;eA==\x07 warned", stacklevel=1)
            logging.getLogger("engine").warning("\x1b]52;c;eA==\x07 logged")
        if action == "unpicklable":
            return "", 0.0, False, False, {"function": lambda: None}
        self.steps += 1
        return (
            f"did {action}",
            0.5,
            action == "win",
            self.steps >= 5,
            {"pid": os.getpid(), "steps": self.steps},
        )

    def walkthrough(self) -> tuple[str, ...]:
        return ("win",)


def make_scripted(greeting: str = "made") -> gymnasium.Env[str, str]:
    """Make an environment; the return type of this factory is annotated."""
    return ScriptedEnv(greeting)


def make_unsaid(mark: str) -> Any:
    """Make an environment, with ``Any`` as return type; the package must not call this factory."""
    open(mark, "w").close()
    return ScriptedEnv()


def broken_factory() -> gymnasium.Env[str, str]:
    """Return a value that is not an environment."""
    return "not an environment"  # type: ignore[return-value]
