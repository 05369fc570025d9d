"""Environments that misbehave on command, for the tests of the pool. Worker processes import this by name."""

from __future__ import annotations

import logging
import os
import time
import warnings
from typing import Any

import gymnasium


class ScriptedEnv(gymnasium.Env[str, str]):
    """Answers with what it was told; "raise", "hang" and "die" do what they say."""

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
    """A factory that says what it makes."""
    return ScriptedEnv(greeting)


def make_unsaid(mark: str) -> Any:
    """A factory that does not say what it makes; it must not be called."""
    open(mark, "w").close()
    return ScriptedEnv()


def broken_factory() -> gymnasium.Env[str, str]:
    """A factory that does not make an environment."""
    return "not an environment"  # type: ignore[return-value]
