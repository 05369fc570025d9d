"""A batch is made during the update with the batch before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwml_lightning.data.ahead import Ahead
from rwml_lightning.data.loader import Draw, StepLoader
from rwml_lightning.generation import HFGenerator
from rwml_lightning.interrupts import Interrupted, deferred, handled
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.modules.grpo import GRPO
from support.elsewhere import Elsewhere
from support.runs import metrics_of, write_resumable_config


def test_a_value_and_a_failure_arrive() -> None:
    assert Ahead(lambda: threading.current_thread().daemon).value()
    failed = Ahead(lambda: 1 // 0)
    assert failed.settled()
    with pytest.raises(ZeroDivisionError):
        failed.value()


def test_a_signal_ends_the_wait() -> None:
    going_on = threading.Event()
    with handled(), deferred():
        ahead = Ahead(going_on.wait)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not ahead.settled()
        going_on.set()
        ahead.value()
        assert ahead.settled()


class Made:
    """Batches of a loader, and when each was made."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.made: list[int] = []
        self.fails_at = fails_at

    def loader(self, ahead: Any) -> StepLoader[int, tuple[int, ...]]:
        return StepLoader(Draw(list(range(8)), 2, self.make), None, ahead)

    def make(self, step: int, items: Sequence[int]) -> tuple[int, ...]:
        if step == self.fails_at:
            raise ValueError(f"step {step} failed")
        self.made.append(step)
        return (step, *items)


def test_the_next_batch_is_made_while_the_last_one_is_used() -> None:
    made, allowed = Made(), [True, True, False]
    loader = made.loader(lambda: allowed.pop(0))
    seen = []
    for batch in loader:
        assert loader.settled()
        seen.append((batch, list(made.made), loader.step))
    assert seen == [
        ((0, 0, 1), [0, 1], 1),
        ((1, 2, 3), [0, 1, 2], 2),
        ((2, 4, 5), [0, 1, 2], 3),  # the answer was no
        ((3, 6, 7), [0, 1, 2, 3], 4),  # the last one has no next
    ]
    assert not allowed


def test_a_failure_ahead_is_raised_when_its_batch_is_due() -> None:
    loader = Made(fails_at=1).loader(lambda: True)
    batches = iter(loader)
    assert next(batches) == (0, 0, 1)
    assert loader.settled()
    with pytest.raises(ValueError, match="step 1 failed"):
        next(batches)
    assert loader.step == 1  # a resumed run makes the batch again


@pytest.mark.parametrize(
    ("settings", "max_steps", "version", "may"),
    [
        ({}, -1, 3, False),
        ({"max_staleness": 1}, -1, 3, True),
        ({"max_staleness": 1}, 5, 3, True),
        ({"max_staleness": 1}, 4, 3, False),  # the update under way is the last
        ({"max_staleness": 2, "num_iterations": 2}, 5, 2, True),
        ({"max_staleness": 2, "num_iterations": 2}, 4, 2, False),
    ],
)
def test_when_a_stage_may_roll_ahead(
    settings: dict[str, int], max_steps: int, version: int, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = WorldModelGRPO("none", grpo=GRPO(**settings))
    monkeypatch.setattr(WorldModelGRPO, "policy_version", version)
    module._trainer = type("T", (), {"max_steps": max_steps})()  # type: ignore[assignment]
    assert module.may_roll_ahead(Elsewhere("none")) is may
    assert not module.may_roll_ahead(HFGenerator("none"))


@pytest.mark.parametrize(("staleness", "iterations"), [(1, 2), (-1, 1)])
def test_a_staleness_that_no_batch_has_is_refused(staleness: int, iterations: int) -> None:
    with pytest.raises(ValueError, match=rf"max_staleness is {staleness}.*set it to 0 or {iterations}"):
        GRPO(max_staleness=staleness, num_iterations=iterations)


def write_config(folder: Path, model: Path, name: str, changes: dict[str, Any], **signal_once: Any) -> Path:
    file = write_resumable_config(folder, model, name, **signal_once)
    config = yaml.safe_load(file.read_text())
    settings = config["model"]["init_args"]
    settings["grpo"] = {"max_staleness": 1}
    settings["optimizer"] |= changes.pop("optimizer", {})
    settings["grpo"] |= changes.pop("grpo", {})
    generator = {"class_path": "support.elsewhere.Elsewhere", "init_args": changes.pop("generator", {})}
    config["data"]["generator"] = generator
    config["trainer"] |= changes
    file.write_text(yaml.safe_dump(config))
    return file


def fit(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rwml_lightning", "fit", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def by_step(run: Path, name: str) -> list[float]:
    return [value for stage, _, key, value in metrics_of(run) if (stage, key) == ("wm_grpo", name)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_ahead_samples_with_the_weights_before_the_update(tiny_model: Path, tmp_path: Path) -> None:
    still = {"optimizer": {"learning_rate": 1e-12}}
    for name, changes in {"ahead": {}, "turns": {"grpo": {"max_staleness": 0}}, "still": still}.items():
        done = fit(write_config(tmp_path, tiny_model, name, {"max_steps": 3, **changes}))
        assert done.returncode == 0, done.stderr[-4000:]
    ahead, turns, unmoved = (tmp_path / "runs" / name for name in ("ahead", "turns", "still"))
    assert by_step(ahead, "train/staleness") == [0.0, 1.0, 1.0]
    assert by_step(turns, "train/staleness") == [0.0] * 3
    # The second batch of the run ahead is of the first weights, as that of a run whose weights do not move.
    rewards = [by_step(run, "wm/similarity") for run in (ahead, turns, unmoved)]
    assert rewards[0][:2] == rewards[2][:2]
    assert rewards[0][1] != rewards[1][1]
    assert rewards[0][2] != rewards[2][2]
    # The importance weights see the update between.
    assert by_step(turns, "train/importance_ratio") == pytest.approx([1.0] * 3, abs=1e-5)
    assert all(abs(ratio - 1) > 1e-4 for ratio in by_step(ahead, "train/importance_ratio")[1:])
    assert len(by_step(ahead, "time/wait")) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_abandons_the_rollouts_ahead_and_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"generator": {"pause_s": 1.0}}
    sent = {"step": 3, "number": int(signal.SIGTERM), "moment": "update"}
    config = write_config(tmp_path, tiny_model, "r", changes, **sent)
    stopped = fit(config)
    assert stopped.returncode == Interrupted(signal.SIGTERM).code, stopped.stderr[-4000:]
    run = tmp_path / "runs" / "r"
    assert [path.name for path in (run / "checkpoints").glob("stopped-*")] == ["stopped-4.ckpt"]
    finished = fit(config)
    assert finished.returncode == 0, finished.stderr[-4000:]
    # The batch that was abandoned is made again, by then with the newest weights.
    assert by_step(run, "train/staleness") == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_generator_on_the_cards_of_the_trainer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path, tiny_model, "r", {})
    config = yaml.safe_load(file.read_text())
    config["data"]["generator"] = {"class_path": "rwml_lightning.generation.HFGenerator"}
    file.write_text(yaml.safe_dump(config))
    done = fit(file)
    assert done.returncode == 2
    assert "max_staleness is 1" in done.stderr
    assert "HFGenerator shares the devices of the trainer: use VLLMServerGenerator, or set 0" in done.stderr
