"""A child process that answers requests over a pipe, and that its parent can give up on.

The child is a fresh interpreter running this module, so that it inherits neither threads nor locks nor GPU state of a parent
that has torch loaded, and never imports the parent's main module. It ends when the pipe does, when its parent is gone, or
when it is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from rwml_lightning.printable import guard_terminal

_PARENT_CHECK_S = 1.0
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}  # no fight for cores; the same order of sets in every worker


@dataclass(frozen=True, slots=True)
class WorkerError:
    """Why a request has no answer.

    Args:
        reason: ``raised`` (the handler raised), ``timeout``, ``died`` (the process ended) or ``lost`` (the process was
            given up for another request's sake; this one is not to blame).
        message: For people.
    """

    reason: Literal["raised", "timeout", "died", "lost"]
    message: str


class Worker:
    """One child process.

    Args:
        handler: Path ``package.module:name`` of what is called with ``arguments`` in the child and gives the function from
            request to answer. Requests and answers are pickled.
        arguments: Arguments of the handler.
        start_timeout_s: Most seconds until the handler is there.
    """

    def __init__(self, handler: str, *arguments: Any, start_timeout_s: float = 120.0) -> None:
        self._connection, child_end = Pipe()
        try:
            start = f"from {__name__} import main; main({child_end.fileno()}, {os.getpid()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    **_ENVIRONMENT,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        finally:
            child_end.close()
        self._pending: list[Hashable] = []
        self._timeout_s = self._start_timeout_s = start_timeout_s
        self._starting = True
        self._deadline = time.monotonic() + start_timeout_s
        self._send((handler, arguments))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._connection.closed and self._process.poll() is None

    def submit(self, requests: Mapping[Hashable, Any], timeout_s: float) -> None:
        """Send requests, answered in order.

        Args:
            requests: Requests by a key of the caller's.
            timeout_s: Most seconds for each.
        """
        assert not self._pending, "collect the answers before the next requests"
        self._pending = list(requests)
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s + (self._start_timeout_s if self._starting else 0.0)
        self._send(list(requests.values()))

    def close(self, patience_s: float = 2.0) -> None:
        """End the child: ask, wait a little, kill. May be called twice."""
        with contextlib.suppress(OSError):
            self._connection.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self.close()

    def _send(self, message: Any) -> None:
        # A dead child is noticed when its answer is read, in one place.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(message)

    def _receive(self) -> list[tuple[Hashable, Any]]:
        """The next answer; or, when the child has ended, an error for everything that is pending."""
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.close()
            return self._give_up("died", f"worker process ended with exit code {self._process.returncode}")
        except Exception as error:  # an answer that this process cannot unpickle
            self.kill()
            return self._give_up("raised", f"answer cannot be read: {error!r}")
        if self._starting and isinstance(answer, WorkerError):
            self.kill()
            return self._give_up(answer.reason, answer.message, blame_all=True)
        if self._starting:
            self._starting = False
            self._deadline = time.monotonic() + self._timeout_s
            return []
        self._deadline = time.monotonic() + self._timeout_s
        return [(self._pending.pop(0), answer)]

    def _expire(self) -> list[tuple[Hashable, Any]]:
        self.kill()
        limit = self._start_timeout_s if self._starting else self._timeout_s
        doing = "start" if self._starting else "answer"
        return self._give_up("timeout", f"no {doing} within {limit:g} s")

    def _give_up(self, reason: Any, message: str, blame_all: bool = False) -> list[tuple[Hashable, Any]]:
        lost = (
            WorkerError(reason, message)
            if blame_all
            else WorkerError("lost", f"another request ended its worker: {message}")
        )
        errors = [WorkerError(reason, message), *[lost] * (len(self._pending) - 1)]
        failed = list(zip(self._pending, errors, strict=False))
        self._pending = []
        return failed


def collect(workers: Sequence[Worker]) -> Iterator[tuple[Hashable, Any]]:
    """Answers of all submitted requests as they come; a ``WorkerError`` for one that gets none. Never waits for ever.

    A worker that dies or exceeds its time is killed; it is then not ``alive``.
    """
    busy = {worker._connection: worker for worker in workers if worker._pending}
    while busy:
        patience_s = max(0.0, min(worker._deadline for worker in busy.values()) - time.monotonic())
        ready = wait(list(busy), patience_s)
        now = time.monotonic()
        for connection, worker in list(busy.items()):
            if connection in ready:
                answers = worker._receive()
            elif now >= worker._deadline:
                answers = worker._expire()
            else:
                continue
            if not worker._pending:
                del busy[connection]
            yield from answers


def _leave_with_parent(parent: int) -> None:
    """End this process when its parent does, even while a handler hangs or another process holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _answer(function: Callable[[Any], Any], request: Any) -> bytes:
    try:
        return pickle.dumps(function(request))
    except Exception as error:
        details = traceback.format_exc(limit=-4).strip()
        return pickle.dumps(WorkerError("raised", f"{type(error).__name__}: {error}\n{details}"))


def _load_handler(message: tuple[str, tuple[Any, ...]]) -> Callable[[Any], Any]:
    handler, arguments = message
    module, _, name = handler.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _serve(connection: Connection) -> None:
    """Child's side: make the handler, then answer batches of requests until the pipe ends."""
    handlers: list[Callable[[Any], Any]] = []

    def start(message: Any) -> bool:
        handlers.append(_load_handler(message))
        return True

    try:
        connection.send_bytes(_answer(start, connection.recv()))
        while handlers:
            for request in connection.recv():
                connection.send_bytes(_answer(handlers[0], request))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed its end: done


def main(file_descriptor: int, parent: int) -> None:
    """Child's side.

    Args:
        file_descriptor: This end of the pipe.
        parent: Process id of the parent.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle; when it goes, so does this
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    os.dup2(2, 1)  # what an environment prints is not the parent's output
    guard_terminal()
    _serve(Connection(file_descriptor))
