"""Runs of two processes from their config: the same numbers as one, requests that all obey, failures that end all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rwml_lightning.trace import TraceReader
from support.runs import NUM_STEPS, make_config, metrics_of, write_resumable_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SLOW_STEPS = {"class_path": "support.runs.SlowSteps"}
TIMES = ("time/", "throughput/", "memory/")


def write_config(
    folder: Path, model: Path, name: str, callback: dict[str, Any] | None = None, **trainer: Any
) -> Path:
    """The run of :func:`write_resumable_config` on two processes, at a learning rate at which rounding flips no sample."""
    file = write_resumable_config(folder, model, name)
    config = yaml.safe_load(file.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp", **trainer}
    config["model"]["init_args"]["optimizer"]["learning_rate"] = 2e-4
    if callback is not None:
        config["trainer"]["callbacks"] = [callback]
    file.write_text(yaml.safe_dump(config))
    return file


@contextmanager
def started(config: Path, *arguments: str, launcher: list[str] = TORCHRUN) -> Iterator[subprocess.Popen[str]]:
    """A run at work; what is left of it in the end is killed."""
    command = [sys.executable, *launcher, "-m", "rwml_lightning", "fit", "--config", str(config), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def fit(config: Path, *arguments: str, launcher: list[str] = TORCHRUN) -> str:
    with started(config, *arguments, launcher=launcher) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output


def numbers(run: Path) -> dict[tuple[str, int, str], float]:
    """All metrics but those that are times."""
    rows = {(stage, step, name): value for stage, step, name, value in metrics_of(run)}
    assert len(rows) == len(metrics_of(run))  # nothing stands there twice
    return {place: value for place, value in rows.items() if not place[2].startswith(TIMES)}


@pytest.mark.parametrize("launcher", [TORCHRUN, []], ids=["torchrun", "lightning"])
def test_a_run_of_two_processes_has_the_numbers_of_one(
    tiny_model: Path, tmp_path: Path, launcher: list[str]
) -> None:
    fit(write_config(tmp_path, tiny_model, "one", devices=1, strategy="auto"), launcher=[])
    output = fit(write_config(tmp_path, tiny_model, "two"), launcher=launcher)
    assert output.count("run folder: ") == output.count("warm-up: ") == 1
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]
    one, two = numbers(runs / "one"), numbers(runs / "two")
    assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    with TraceReader(runs / "two" / "trace.db") as reader:
        assert [(s.stage, s.last_step) for s in reader.stages()] == [("wm_sft", 2), ("wm_grpo", NUM_STEPS)]
    # Resumed by one process, there is nothing left to do.
    again = fit(write_config(tmp_path, tiny_model, "two"), launcher=launcher)
    assert "wm_grpo 1/" not in again


def test_two_processes_that_roll_ahead_have_the_numbers_of_one(tiny_model: Path, tmp_path: Path) -> None:
    for name, devices, launcher in (("one", 1, []), ("two", 2, TORCHRUN)):
        file = write_config(tmp_path, tiny_model, name, devices=devices, max_steps=3)
        config = yaml.safe_load(file.read_text())
        config["model"]["init_args"]["grpo"] = {"max_staleness": 1}
        config["data"]["generator"] = {"class_path": "support.elsewhere.Elsewhere"}
        file.write_text(yaml.safe_dump(config))
        fit(file, launcher=launcher)
    one, two = numbers(tmp_path / "runs" / "one"), numbers(tmp_path / "runs" / "two")
    assert [one["wm_grpo", step, "train/staleness"] for step in (1, 2, 3)] == [0, 1, 1]
    assert two == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_all_ranks_obey_the_dashboard_and_another_number_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs" / "asked" / "trace.db"
    with started(write_config(tmp_path, tiny_model, "asked", SLOW_STEPS)) as process:
        wait_until(lambda: store.exists() and last_step(store) >= 1, process)
        with TraceReader(store) as reader:
            for command in ("pause", "checkpoint", "continue", "stop"):
                reader.send_command(command)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-4000:]
    step = last_step(store)
    assert 1 <= step < NUM_STEPS
    folder = store.parent / "checkpoints"
    assert {path.name for path in folder.glob("*-*.ckpt")} >= {f"asked-{step}.ckpt", f"stopped-{step}.ckpt"}
    fit(write_config(tmp_path, tiny_model, "asked", SLOW_STEPS), "--trainer.max_steps", "-1")
    assert last_step(store) == NUM_STEPS


def test_an_exception_of_one_rank_ends_all_and_its_message_is_stored(
    tiny_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "runs" / "failing" / "trace.db"
    failing = {"class_path": "support.runs.FailOnOneRank"}
    with started(write_config(tmp_path, tiny_model, "failing", failing)) as process:
        start = time.monotonic()
        output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - start < 90
    with TraceReader(store) as reader:
        run = reader.run()
    reason = "rank 1 failed: RuntimeError: the disk of rank 1 is full"
    assert (run.status, run.detail) == ("failed", reason), output[-3000:]


def test_a_signal_to_one_rank_saves_the_run_on_all(tiny_model: Path, tmp_path: Path) -> None:
    place = {"step": 3, "rank": 1, "moment": "rollouts", "number": signal.SIGTERM.value}
    once = {"class_path": "support.runs.SignalOnce", "init_args": {**place, "mark": str(tmp_path / "sent")}}
    config = write_config(tmp_path, tiny_model, "ended", once)
    with started(config) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("interrupted by SIGTERM; the same command goes on") == 2
    run = tmp_path / "runs" / "ended"
    assert (run / "checkpoints" / "stopped-3.ckpt").is_file()
    with TraceReader(run / "trace.db") as reader:
        assert (reader.run().status, reader.run().detail) == ("stopped", "interrupted by SIGTERM")
    fit(config)
    assert last_step(run / "trace.db") == NUM_STEPS


def test_ranks_stay_together_when_rollouts_fail_at_random(tiny_model: Path, tmp_path: Path) -> None:
    num_steps = int(os.environ.get("RWML_TEST_STEPS", "20"))
    rooms = {
        "games": {"train": ["a", "b", "c", "d"], "validation": ["v"]},
        "folder": str(tmp_path),
        "length": 3,
    }
    episodes = {
        "prompt": {"layout": "window", "history_turns": 0, "system": "", "user": "{observation}", "answer": "{action}"},
        "sampling": {"max_tokens": 4}, "games_per_step": 4, "group_size": 2, "max_turns": 3, "num_passes": num_steps,
        "num_workers": 1, "max_dropped_share": 0.5, "validation": {"episodes_per_game": 1, "max_turns": 2},
    }  # fmt: skip
    environment = {"id": "support.environments.UnreliableRoomsEnv", "kwargs": rooms}
    policy = {"class_path": "rwml_lightning.modules.PolicyGRPO", "init_args": {"model": str(tiny_model)}}
    config = make_config(
        tmp_path,
        tiny_model,
        model=policy,
        trainer={"devices": 2, "strategy": "ddp", "max_steps": -1},
        data={"environment": environment, "predictions": None, "episodes": episodes},
    )
    with started(config) as process:
        output, _ = process.communicate(timeout=60 + 5 * num_steps)
    assert process.returncode == 0, output[-4000:]
    assert len(list(tmp_path.glob("error-*"))) > num_steps / 4
    with TraceReader(tmp_path / "runs" / "r" / "trace.db") as reader:
        assert [step.step for step in reader.steps("policy_grpo")] == list(range(1, num_steps + 1))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_and_by_two(
    tiny_model: Path, tmp_path: Path, strategy: str
) -> None:
    fit(write_config(tmp_path, tiny_model, "whole", strategy=strategy))
    runs = tmp_path / "runs"
    (checkpoint,) = (runs / "whole" / "checkpoints").glob("step-6.ckpt")
    assert torch.load(checkpoint, weights_only=True)["state_dict"]
    whole = {
        place: v for place, v in numbers(runs / "whole").items() if place[0] == "wm_grpo" and place[1] > 6
    }
    alone = write_config(tmp_path, tiny_model, "alone", devices=1, strategy="auto")
    two = write_config(tmp_path, tiny_model, "two", strategy=strategy)
    for name, config, launcher in (("alone", alone, []), ("two", two, TORCHRUN)):
        fit(config, "--ckpt_path", str(checkpoint), launcher=launcher)
        resumed = {place: v for place, v in numbers(runs / name).items() if place[0] == "wm_grpo"}
        assert {step for _, step, _ in resumed} == {7, 8}
        assert resumed == pytest.approx(whole, rel=1e-3, abs=1e-4), name


def last_step(store: Path) -> int:
    with TraceReader(store) as reader:
        return max((s.last_step or 0 for s in reader.stages() if s.stage == "wm_grpo"), default=0)


def wait_until(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.2)
