"""A batch that is made while the trainer updates the policy with the batch before it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from rwml_lightning import interrupts

T = TypeVar("T")
_POLL_S = 0.1


class Ahead(Generic[T]):
    """Computes a value on a thread. As a daemon, the thread does not keep the process alive.

    Args:
        make: Function that computes the value. It must not call a collective: the main thread calls others meanwhile.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._value: Future[T] = Future()
        threading.Thread(target=self._run, args=(make,), daemon=True, name="rollouts-ahead").start()

    def _run(self, make: Callable[[], T]) -> None:
        try:
            self._value.set_result(make())
        except BaseException as error:
            self._value.set_exception(error)

    def value(self) -> T:
        """Return the value, or raise the exception of ``make``."""
        return self._value.result()

    def settled(self) -> bool:
        """Wait until ``make`` has ended. Returns ``False`` if a signal has arrived instead, since the value will not be used."""
        while not self._value.done():
            if interrupts.pending():
                return False
            wait([self._value], _POLL_S)
        return True
