"""A child process that answers requests over a pipe, with a time limit after which its parent kills it.

The child is a new interpreter that runs this module. It therefore inherits no threads, locks or GPU state from a parent that has
torch loaded, and it never imports the parent's main module. It ends when the pipe is closed, when its parent has ended, or when it
is killed.
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
# One thread per worker, so that workers do not compete for cores; the same order of sets in every worker.
_ENVIRONMENT_VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a request has no answer. In a pool, the slot must then be reset, and its episode must not be scored.

    Args:
        reason: ``raised`` (the handler raised, or an environment gave an answer of a wrong type), ``timeout`` or ``died`` (the process
            ended): this request failed. ``lost``: another request ended the process, so this one can safely be tried again.
        error: Error text for people; the first line names the problem.
    """

    reason: Literal["raised", "timeout", "died", "lost"]
    error: str

    @property
    def line(self) -> str:
        """First line of the error text."""
        return self.error.splitlines()[0]


class Worker:
    """Child process that answers requests.

    Args:
        handler: Path ``package.module:name`` of a class or function. The child calls it with ``arguments``; the result is the
            function from request to answer. Requests and answers are pickled.
        arguments: Arguments of ``handler``.
        start_timeout_s: Time limit for the start of the process and the call of ``handler``, in seconds.
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
                    **_ENVIRONMENT_VARIABLES,
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
        """Whether the process is running and its pipe is open."""
        return not self._connection.closed and self._process.poll() is None

    def submit(self, requests: Mapping[Hashable, Any], timeout_s: float) -> None:
        """Send requests, which the child answers in order.

        Args:
            requests: Requests by a key that the caller chooses.
            timeout_s: Time limit of each request, in seconds.
        """
        assert not self._pending, "collect the answers before the next requests"
        self._pending = list(requests)
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s + (self._start_timeout_s if self._starting else 0.0)
        self._send(list(requests.values()))

    def close(self, patience_s: float = 2.0) -> None:
        """Close the pipe, wait up to ``patience_s`` seconds for the child to end, and then kill it. It may be called twice."""
        with contextlib.suppress(OSError):
            self._connection.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill the child at once."""
        self._process.kill()
        self.close()

    def _send(self, message: Any) -> None:
        # A dead child is noticed in _receive, where its answer is read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(message)

    def _receive(self) -> list[tuple[Hashable, Any]]:
        """Receive the next answer. If the child has ended, return an error for each pending request."""
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.close()
            return self._fail_pending(
                "died", f"worker process ended with exit code {self._process.returncode}"
            )
        except Exception as error:  # this process cannot unpickle the answer
            self.kill()
            return self._fail_pending("raised", f"answer cannot be read: {error!r}")
        if self._starting and isinstance(answer, Failure):
            self.kill()
            return self._fail_pending(answer.reason, answer.error, blame_all=True)
        if self._starting:
            self._starting = False
            self._deadline = time.monotonic() + self._timeout_s
            return []
        self._deadline = time.monotonic() + self._timeout_s
        return [(self._pending.pop(0), answer)]

    def _time_out(self) -> list[tuple[Hashable, Any]]:
        self.kill()
        limit = self._start_timeout_s if self._starting else self._timeout_s
        verb = "start" if self._starting else "answer"
        return self._fail_pending("timeout", f"no {verb} within {limit:g} s")

    def _fail_pending(self, reason: Any, message: str, blame_all: bool = False) -> list[tuple[Hashable, Any]]:
        blamed = Failure(reason, message)
        lost = Failure("lost", f"another request ended the worker process: {message}")
        errors = [blamed, *[blamed if blame_all else lost] * (len(self._pending) - 1)]
        failed = list(zip(self._pending, errors, strict=False))
        self._pending = []
        return failed


def collect(workers: Sequence[Worker]) -> Iterator[tuple[Hashable, Any]]:
    """Yield the key and the answer of each submitted request, in the order of arrival.

    A request without an answer gives a ``Failure``. A worker that dies or exceeds its time limit is killed and is then no longer
    ``alive``, so the wait always ends.
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
                answers = worker._time_out()
            else:
                continue
            if not worker._pending:
                del busy[connection]
            yield from answers


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent has ended, even if a handler hangs or another process keeps the pipe open."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _answer(function: Callable[[Any], Any], request: Any) -> bytes:
    try:
        return pickle.dumps(function(request))
    except Exception as error:
        details = traceback.format_exc(limit=-4).strip()
        return pickle.dumps(Failure("raised", f"{type(error).__name__}: {error}\n{details}"))


def _load_handler(message: tuple[str, tuple[Any, ...]]) -> Callable[[Any], Any]:
    handler, arguments = message
    module, _, name = handler.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _serve(connection: Connection) -> None:
    """Make the handler in the child, then answer batches of requests until the pipe is closed."""
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
        return  # the parent has closed the pipe


def main(file_descriptor: int, parent: int) -> None:
    """Run the child process.

    Args:
        file_descriptor: File descriptor of the child's end of the pipe.
        parent: Process id of the parent.
    """
    # The parent handles Ctrl-C; this process ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    os.dup2(2, 1)  # prints of an environment go to stderr, not into the parent's output
    guard_terminal()
    _serve(Connection(file_descriptor))
