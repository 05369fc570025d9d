"""The pool on environments that raise, hang and die, and on the real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Failure, Observation
from rwml_lightning.envs.boundary import read_reset
from support.paths import TESTS

SCRIPTED = EnvironmentSpec("support.environments:ScriptedEnv", {"greeting": "hi"})


def _gone(pid: int, patience_s: float = 10.0) -> bool:
    """Whether a process has ended (or is a zombie that nobody has waited for)."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_what_an_environment_warns_of_and_logs_cannot_steer_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with EnvironmentPool(SCRIPTED, num_workers=1) as pool:
        pool.reset_many([(0, 1, None)])
        pool.step_many({0: "warn"})
    shown = capfd.readouterr().err
    assert "\\x1b]52;c;eA==\\x07 warned" in shown
    assert "\\x1b]52;c;eA==\\x07 logged" in shown
    assert "\x1b" not in shown


@pytest.mark.heavy
def test_reset_step_and_call_answer_by_slot() -> None:
    with EnvironmentPool(SCRIPTED, num_workers=2) as pool:
        first = pool.reset_many([(0, 11, "a"), (1, 12, "b"), (5, 13, None)])
        assert [first[slot].obs for slot in (0, 1, 5)] == ["hi a", "hi b", "hi None"]
        assert first[0].info["pid"] != first[1].info["pid"] == first[5].info["pid"]
        assert first[0].info["pid"] != os.getpid()
        second = pool.step_many({5: "look", 0: "win"})
        assert list(second) == [5, 0]
        assert second[0] == Observation(
            "did win", 0.5, True, False, {"pid": first[0].info["pid"], "steps": 1}
        )
        assert second[0].done
        assert not second[5].done
        assert pool.walkthrough_many([1]) == {1: ("win",)}
        assert pool.num_replaced == 0


@pytest.mark.heavy
def test_the_same_seed_gives_the_same_episode_in_any_slot() -> None:
    with EnvironmentPool(SCRIPTED, num_workers=2) as pool:
        results = pool.reset_many([(0, 5, None), (1, 5, None), (2, 6, None)])
    draws = [results[slot].info["draw"] for slot in range(3)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.heavy
def test_one_that_raises_fails_alone_and_its_worker_is_replaced_when_idle() -> None:
    with EnvironmentPool(SCRIPTED, num_workers=1) as pool:
        pid = pool.reset_many([(0, 0, None), (1, 0, None)])[0].info["pid"]
        results = pool.step_many({0: "raise", 1: "look"})
        assert isinstance(results[0], Failure)
        assert results[0].reason == "raised"
        assert "broken on purpose" in results[0].error
        assert results[1].obs == "did look"
        assert pool.step_many({0: "look"})[0].reason == "lost"
        again = pool.reset_many([(0, 0, None)])[0]
        assert again.info["pid"] != pid
        assert (
            pool.step_many({0: "look", 1: "look"})[1].info["pid"] == pid
        )  # its episode is played to the end
        pool.reset_many([(1, 0, None)])
        assert _gone(pid)
        assert pool.num_replaced == 1


@pytest.mark.heavy
@pytest.mark.parametrize(("action", "reason"), [("hang", "timeout"), ("die", "died")])
def test_one_that_hangs_or_dies_is_killed_and_replaced(action: str, reason: str) -> None:
    with EnvironmentPool(SCRIPTED, num_workers=2, step_timeout_s=1.0) as pool:
        begun = pool.reset_many([(slot, 0, None) for slot in range(6)])
        start = time.monotonic()
        results = pool.step_many({0: "look", 1: "look", 2: action, 3: "look", 4: "look", 5: "look"})
        assert time.monotonic() - start < 8
        assert results[0].obs == "did look"
        assert results[2].reason == reason
        assert results[4].reason == "lost"
        assert all(results[slot].obs == "did look" for slot in (1, 3, 5))
        assert _gone(begun[2].info["pid"])
        assert pool.step_many({0: "look"})[0].reason == "lost"
        fresh = pool.reset_many([(0, 0, "t")])[0]
        assert fresh.obs == "hi t"
        assert fresh.info["pid"] != begun[0].info["pid"]


@pytest.mark.heavy
def test_a_reset_that_hangs_is_reported() -> None:
    spec = EnvironmentSpec("support.environments.ScriptedEnv", {"hang_on_reset": True})
    with EnvironmentPool(spec, num_workers=1, reset_timeout_s=1.0) as pool:
        assert pool.reset_many([(0, 0, None)])[0].reason == "timeout"


@pytest.mark.heavy
def test_an_answer_that_does_not_pickle_and_a_bad_spec_are_failures() -> None:
    with EnvironmentPool(SCRIPTED, num_workers=1) as pool:
        pool.reset_many([(0, 0, None)])
        assert pool.step_many({0: "unpicklable"})[0].reason == "raised"
    with EnvironmentPool(EnvironmentSpec("support.environments:Missing"), num_workers=1) as pool:
        failure = pool.reset_many([(0, 0, None)])[0]
        assert failure.reason == "raised"
        assert "has no 'Missing'" in failure.error


@pytest.mark.heavy
def test_workers_are_recycled_after_their_episodes() -> None:
    with EnvironmentPool(SCRIPTED, num_workers=1, max_episodes_per_worker=2) as pool:
        pids = [pool.reset_many([(0, 0, None)])[0].info["pid"] for _ in range(5)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        assert _gone(pids[0])
        assert pool.num_replaced == 2


@pytest.mark.heavy
def test_close_ends_the_children() -> None:
    pool = EnvironmentPool(SCRIPTED, num_workers=2)
    pids = [result.info["pid"] for result in pool.reset_many([(0, 0, None), (1, 0, None)]).values()]
    pool.close()
    pool.close()
    assert all(_gone(pid) for pid in pids)


@pytest.mark.heavy
def test_children_end_when_their_parent_is_killed() -> None:
    program = (
        "import sys, time\n"
        f"sys.path[:0] = [{str(TESTS)!r}]\n"
        "from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec\n"
        "pool = EnvironmentPool(EnvironmentSpec('support.environments:ScriptedEnv'), num_workers=2)\n"
        "print(*[r.info['pid'] for r in pool.reset_many([(0, 0, None), (1, 0, None)]).values()], flush=True)\n"
        "pool.step_many({0: 'hang'})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)  # so that one child is hanging
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert all(_gone(pid) for pid in pids)


@pytest.mark.parametrize("name", ["num_workers", "step_timeout_s", "max_episodes_per_worker"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: 0 is not positive"):
        EnvironmentPool(SCRIPTED, **{name: 0})


@pytest.mark.heavy
def test_real_games_in_the_pool(games: Path) -> None:
    spec = EnvironmentSpec("rwml/ALFWorld-v0", {"data": str(games), "max_steps": 40})
    environment = spec.make()
    tasks = environment.get_wrapper_attr("tasks")["train"]
    with EnvironmentPool(spec, num_workers=2) as pool:
        results = pool.reset_many([(slot, slot, tasks[slot]) for slot in range(4)])
        plans = pool.walkthrough_many(range(4))
        for slot in range(4):
            assert results[slot] == read_reset(environment.reset(options={"task": tasks[slot]}))
        for step in range(max(map(len, plans.values()))):
            actions = {slot: plan[step] for slot, plan in plans.items() if step < len(plan)}
            results.update(pool.step_many(actions))
        assert [(results[slot].reward, results[slot].terminated) for slot in range(4)] == [(1.0, True)] * 4
        assert pool.reset_many([(0, 0, "no/such/game")])[0].reason == "raised"
