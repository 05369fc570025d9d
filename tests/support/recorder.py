"""A callable that records its calls."""

from __future__ import annotations

from typing import Any


class Recorder:
    """Record the arguments of each call, and always return the same value."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append((arguments, named) if named else arguments)
        return self.answer
