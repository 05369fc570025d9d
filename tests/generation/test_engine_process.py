"""The watch over an engine, with a child process that only sleeps as the engine."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest

from rwml_lightning.generation.engine_process import EngineProcess

pytestmark = pytest.mark.heavy


def start_sleeper() -> int:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), name="EngineCore")
    process.start()
    assert process.pid is not None
    return process.pid


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_results_and_errors_come_back_and_end_stops_the_engine() -> None:
    engine = EngineProcess()
    pid = engine.start(start_sleeper, timeout_s=60)
    assert engine.pid == pid
    assert engine.alive
    assert engine.call("add", lambda: 1 + 1, timeout_s=10) == 2
    with pytest.raises(KeyError, match="from inside"):
        engine.call("fail", lambda: {}["from inside"], timeout_s=10)
    assert engine.alive
    engine.end()
    assert gone(pid)
    engine.end()


def test_a_hung_call_is_given_up_and_the_engine_ended() -> None:
    engine = EngineProcess()
    pid = engine.start(start_sleeper, timeout_s=60)
    with pytest.raises(RuntimeError, match=r"did not finish generate within 0.2 s.*request_timeout_s"):
        engine.call("generate", lambda: time.sleep(600), timeout_s=0.2)
    assert gone(pid)


def test_a_dead_engine_is_noticed_while_waiting() -> None:
    engine = EngineProcess()
    pid = engine.start(start_sleeper, timeout_s=60)
    psutil.Process(pid).kill()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="the engine died during generate"):
        engine.call("generate", lambda: time.sleep(600), timeout_s=600)
    assert time.monotonic() - started < 30


def test_a_start_that_hangs_or_fails_leaves_no_process() -> None:
    pids: list[int] = []

    def hang() -> None:
        pids.append(start_sleeper())
        time.sleep(600)

    with pytest.raises(RuntimeError, match=r"not ready after 5 s.*startup_timeout_s"):
        EngineProcess().start(hang, timeout_s=5)
    assert gone(pids[0])

    def fail() -> None:
        pids.append(start_sleeper())
        raise RuntimeError("root cause")

    with pytest.raises(RuntimeError, match=r"did not start.*root cause"):
        EngineProcess().start(fail, timeout_s=60)
    assert gone(pids[1])


def test_the_end_of_the_interpreter_ends_the_engine() -> None:
    program = (
        "import test_engine_process as t\n"
        "if __name__ == '__main__':\n"
        "    engine = t.EngineProcess()\n"
        "    print(engine.start(t.start_sleeper, timeout_s=60), flush=True)\n"
        "    raise SystemExit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    assert gone(int(done.stdout))
