"""Which processes count as the engine's, and that none of them is left, with small programs as the engine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rwml_lightning.generation import engine_process
from rwml_lightning.generation.engine_process import EngineProcess

pytestmark = pytest.mark.heavy

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
START = "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', {!r}]); print({}, flush=True); child.wait()"
PARENT = START.format(START.format(SLEEP, "child.pid"), "'started'")
"""Starts a process that starts another, whose id it says."""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Children:
    """Programs that stand for this process's children."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.listed: list[Any] = []
        monkeypatch.setattr(engine_process.multiprocessing, "active_children", lambda: list(self.listed))
        monkeypatch.setattr(engine_process, "POLL_S", 0.05)
        monkeypatch.setattr(engine_process, "END_GRACE_S", 0.3)

    def start(self, name: str = "EngineCore_0", program: str = SLEEP) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        self.started.append(child)
        self.listed.append(SimpleNamespace(pid=child.pid, name=name))
        return child


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    made = Children(monkeypatch)
    yield made
    for child in made.started:
        child.kill()
        child.communicate()


def test_only_what_the_load_started_under_its_name_is_the_engine(children: Children) -> None:
    earlier = children.start()
    children.listed.append(SimpleNamespace(pid=None, name="EngineCore_9"))  # not running yet
    others: list[subprocess.Popen[str]] = []

    def load() -> str:
        others.append(children.start("Worker"))
        children.listed.append(SimpleNamespace(pid=2**22 + 1, name="EngineCore_8"))  # gone already
        others.append(children.start("EngineCore_1"))
        return "ready"

    engine = EngineProcess()
    assert not engine.alive
    assert engine.start(load, timeout_s=60) == "ready"
    worker, own = others
    assert engine.pid == own.pid
    assert engine.alive
    engine.end()
    assert not engine.alive
    assert gone(own.pid)
    assert not gone(earlier.pid)
    assert not gone(worker.pid)


def test_an_engine_may_have_another_name(children: Children) -> None:
    engine = EngineProcess("Worker")
    child = engine.start(lambda: children.start("Worker-3"), timeout_s=60)
    assert engine.pid == child.pid
    engine.end()
    assert gone(child.pid)


@pytest.mark.parametrize("program", [STUBBORN, PARENT])
def test_what_does_not_listen_and_what_the_engine_started_end_too(children: Children, program: str) -> None:
    said: list[str] = []

    def load() -> int:
        child = children.start(program=program)
        assert child.stdout is not None
        said.extend(child.stdout.readline().strip() for _ in range(2 if program == PARENT else 1))
        return child.pid

    engine = EngineProcess()
    pid = engine.start(load, timeout_s=60)
    pids = [pid] if program == STUBBORN else [pid, int(max(said, key=str.isdigit))]
    engine.end()
    assert all(map(gone, pids))


def test_an_engine_of_several_processes_is_alive_with_all_of_them(children: Children) -> None:
    engine = EngineProcess()
    first, second = engine.start(lambda: (children.start(), children.start()), timeout_s=60)
    assert engine.alive
    second.kill()
    second.wait()
    assert not engine.alive
    with pytest.raises(
        RuntimeError, match=r"the engine died during score; its last messages are above \(often"
    ):
        engine.call("score", lambda: time.sleep(60), timeout_s=60)
    assert gone(first.pid)


def test_one_that_is_gone_does_not_save_the_others(children: Children) -> None:
    engine = EngineProcess()
    gone_before, other = engine.start(lambda: (children.start(), children.start()), timeout_s=60)
    gone_before.kill()
    gone_before.wait()
    engine.end()
    assert gone(other.pid)


def test_an_answer_counts_that_came_before_the_end(children: Children) -> None:
    """The engine is dead when the answer is there: the answer is good all the same."""
    engine = EngineProcess()
    child = engine.start(children.start, timeout_s=60)

    def answer() -> str:
        child.kill()
        child.wait()
        return "done"

    assert engine.call("generate", answer, timeout_s=60) == "done"


@pytest.mark.parametrize("error", [RuntimeError, KeyError, KeyboardInterrupt])
def test_a_start_that_fails_ends_what_it_started(children: Children, error: type[BaseException]) -> None:
    def load() -> None:
        children.start()
        raise error("root cause")

    with pytest.raises(error, match="root cause") as caught:
        EngineProcess().start(load, timeout_s=60)
    own = "the engine did not start; its error messages are above (root cause)"
    assert (str(caught.value) == own) == (error is RuntimeError)
    assert gone(children.started[0].pid)


def test_a_start_and_a_call_have_their_time(children: Children) -> None:
    release = threading.Event()

    def hang() -> None:
        children.start()
        release.wait(60)

    begun = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"the engine was not ready after 1 s and was ended: raise startup_timeout"
    ):
        EngineProcess().start(hang, timeout_s=1)
    assert gone(children.started[0].pid)
    engine = EngineProcess()
    engine.start(children.start, timeout_s=60)
    with pytest.raises(
        RuntimeError, match=r"the engine did not finish score within 0\.2 s and was ended: raise req"
    ):
        engine.call("score", lambda: release.wait(60), timeout_s=0.2)
    assert time.monotonic() - begun < 30
    release.set()


def shut(seconds: float, asked: list[str]) -> Callable[[], None]:
    def shutdown() -> None:
        asked.append(threading.current_thread().name)
        time.sleep(seconds)

    return shutdown


def test_an_engine_may_end_itself_but_is_not_waited_for_long(children: Children) -> None:
    asked: list[str] = []
    engine = EngineProcess()
    child = engine.start(children.start, timeout_s=60)
    begun = time.monotonic()
    engine.end(shut(60, asked))
    assert time.monotonic() - begun < 20
    assert asked == ["engine-calls"]  # on the thread of all its calls
    assert gone(child.pid)
    engine.end(shut(0, asked))  # nothing left to shut down
    assert len(asked) == 1


def test_the_thread_of_calls_does_not_keep_the_interpreter(children: Children) -> None:
    engine = EngineProcess()
    engine.start(children.start, timeout_s=60)
    engine.call("where", lambda: None, timeout_s=60)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "engine-calls")
    engine.end()
