"""SIGTERM and SIGINT end a run in order: an update in progress is finished, and all other work is abandoned and repeated later."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rwml_lightning.printable import printable

REPEAT_S = 5.0
"""Signals within this time are one request: a launcher forwards the signal that the terminal has sent to all processes."""


class Interrupted(SystemExit):
    """A signal ended the run. The exit code is 128 plus the number of the signal, as in a shell.

    Args:
        number: Number of the signal.
        in_order: Whether no update was in progress, so that a checkpoint can be saved.
    """

    def __init__(self, number: int, in_order: bool = True) -> None:
        super().__init__(128 + number)
        self.number = number
        self.in_order = in_order

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.number).name}"


@dataclass
class _State:
    """Signals belong to the whole process, and so does this state."""

    deferring: bool = False
    number: int | None = None
    time: float = 0.0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread when SIGTERM or SIGINT arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.number = None


@contextmanager
def deferred() -> Iterator[None]:
    """Defer a signal to the next :func:`interruptible` block. A second one, some seconds later, is not deferred."""
    with _deferring(True):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Mark work in a :func:`deferred` block that can be abandoned and repeated.

    Raises:
        Interrupted: A signal has arrived, before the block or in it.
    """
    if _state.number is not None:
        raise Interrupted(_state.number)
    with _deferring(False):
        yield


def pending() -> bool:
    """Return whether a deferred signal has arrived."""
    return _state.number is not None


def keep_handlers(trainer: Any) -> None:
    """Keep a trainer from replacing the handlers. Lightning's own one calls a collective, on the ranks that got the signal alone."""
    trainer._signal_connector.register_signal_handlers = lambda: None


@contextmanager
def _deferring(value: bool) -> Iterator[None]:
    before, _state.deferring = _state.deferring, value
    try:
        yield
    finally:
        _state.deferring = before


def _receive(number: int, frame: FrameType | None) -> None:
    if _state.number is not None:
        if time.monotonic() - _state.time > REPEAT_S:
            raise Interrupted(number, in_order=False)
        return
    _state.number, _state.time = number, time.monotonic()
    if not _state.deferring:
        raise Interrupted(number)
    name = signal.Signals(number).name
    message = f"{name}: ending after the step under way; send it again to end at once"
    print(printable(message), file=sys.stderr, flush=True)
