"""Calls into an engine that runs in separate processes. No call waits for a dead or hung engine."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import psutil

_T = TypeVar("_T")
POLL_S = 1.0
END_GRACE_S = 5.0


class EngineProcess:
    """Runs calls into an engine on a separate thread, with a time limit, and monitors the processes of the engine.

    The thread has two purposes. The caller can abandon a call that never returns. As a daemon, the thread does not keep
    the interpreter alive.

    Args:
        name: Prefix of the names of the engine's child processes.
    """

    def __init__(self, name: str = "EngineCore") -> None:
        self.name = name
        self._processes: list[psutil.Process] = []
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="engine-calls").start()
        # Runs when this object is garbage-collected or when the interpreter ends, whichever comes first.
        self._end = weakref.finalize(self, _end_all, self._processes)

    @property
    def pid(self) -> int:
        """Process id of the engine's first process."""
        return self._processes[0].pid

    @property
    def alive(self) -> bool:
        """Whether the engine has started and all of its processes are running."""
        return bool(self._processes) and all(map(_is_running, self._processes))

    def start(self, load: Callable[[], _T], timeout_s: float) -> _T:
        """Load the engine.

        Args:
            load: Function that starts the engine and returns when it is ready.
            timeout_s: Time limit in seconds.

        Raises:
            RuntimeError: The engine did not start, or not within the limit. All of its processes have been ended.
        """
        before = {process.pid for process in multiprocessing.active_children()}
        future = self._submit(load)
        try:
            result = future.result(timeout_s)
        except FutureTimeoutError:
            self._record_processes(before)
            self.end()
            raise RuntimeError(
                f"the engine was not ready after {timeout_s:g} s and was ended: raise startup_timeout_s, "
                "or find the cause in its messages above"
            ) from None
        except BaseException as error:
            self._record_processes(before)
            self.end()
            if isinstance(error, RuntimeError):
                raise RuntimeError(
                    f"the engine did not start; its error messages are above ({error})"
                ) from error
            raise
        self._record_processes(before)
        return result

    def call(self, what: str, call: Callable[[], _T], timeout_s: float) -> _T:
        """Run a call into the engine and return its result.

        Args:
            what: Name of the call, for error messages.
            call: Function that calls the engine.
            timeout_s: Time limit in seconds.

        Raises:
            RuntimeError: The engine died, or did not answer within the limit. All of its processes have been ended.
        """
        future = self._submit(call)
        deadline = time.monotonic() + timeout_s
        while not future.done():
            try:
                return future.result(min(POLL_S, max(0.0, deadline - time.monotonic())))
            except FutureTimeoutError:
                if future.done():
                    break
            if not self.alive:
                self.end()
                raise RuntimeError(
                    f"the engine died during {what}; its last messages are above (often it is out of memory: "
                    "lower max_num_seqs, max_model_len or kv_cache_gib)"
                )
            if time.monotonic() >= deadline:
                self.end()
                raise RuntimeError(
                    f"the engine did not finish {what} within {timeout_s:g} s and was ended: raise request_timeout_s "
                    "if it was only slow"
                )
        return future.result()

    def end(self, shutdown: Callable[[], None] | None = None) -> None:
        """End the engine and all its processes.

        Args:
            shutdown: The engine's shutdown function, which is tried first.
        """
        if shutdown is not None and self.alive:
            future = self._submit(shutdown)
            with contextlib.suppress(FutureTimeoutError):  # the remaining processes are ended below
                future.result(END_GRACE_S)
        self._end()
        self._processes.clear()

    def _submit(self, call: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        self._calls.put((future, call))
        return future

    def _record_processes(self, before: set[int | None]) -> None:
        """Record the engine processes that were started, and their child processes."""
        for child in multiprocessing.active_children():
            if child.pid is None or child.pid in before or not child.name.startswith(self.name):
                continue
            try:
                process = psutil.Process(child.pid)
                self._processes += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue


def _serve(calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        future, call = calls.get()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del future, call


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_all(processes: list[psutil.Process]) -> None:
    # psutil identifies a process by id and start time, so that a later process with the same id is not ended.
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=END_GRACE_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=END_GRACE_S)
