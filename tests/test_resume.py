"""A run that is killed and started again by the same command ends where an uninterrupted one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.trace import GroupQuery, TraceReader
from support.runs import NUM_STEPS, metrics_of, write_resumable_config


def run_fit(config: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # one order of summation
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", "rwml_lightning", "fit", "--config", str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_fit(write_resumable_config(folder, tiny_model, "r"))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "r"


def timeless(run: Path) -> list[tuple[str, int, str, float]]:
    """All metrics but those that are times."""
    return sorted(m for m in metrics_of(run) if not m[2].startswith(("time/", "throughput/")))


def check_equal(run: Path, whole: Path, start: Path) -> None:
    """Check that a run has the weights, metrics and records of an uninterrupted one."""
    ours, theirs = (load_file(f / "export" / "model.safetensors") for f in (run, whole))
    first = load_file(start / "model.safetensors")
    assert any(not torch.equal(first[name], theirs[name]) for name in first)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # bit by bit
    assert max(Counter(metric[:3] for metric in metrics_of(run)).values()) == 1
    assert timeless(run) == timeless(whole)
    trained = [value for _, _, name, value in timeless(run) if name == "train/grad_norm"]
    assert sum(value > 0 for value in trained) >= NUM_STEPS // 2  # groups had variance
    with TraceReader(run / "trace.db") as reader, TraceReader(whole / "trace.db") as other:
        assert [step.step for step in reader.steps("wm_grpo")] == list(range(1, NUM_STEPS + 1))
        assert [step.step for step in reader.steps("wm_sft")] == [1, 2]
        assert len(reader.evaluations()) == len(other.evaluations()) == 3
        assert reader.count_groups(GroupQuery()) == other.count_groups(GroupQuery())
        assert reader.run().status == "finished"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    # The last checkpoint before the kill is of step 3.
    broken = write_resumable_config(tmp_path, tiny_model, "broken", step=6)
    assert run_fit(broken).returncode == -9
    folder = tmp_path / "runs" / "broken"
    assert not (folder / "export").exists()
    again = run_fit(broken)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["broken"]
    check_equal(folder, whole, tiny_model)
    finished = run_fit(broken)  # a third time there is nothing left to do
    assert finished.returncode == 0, finished.stderr
    assert "Run folder" in finished.stdout
    assert timeless(folder) == timeless(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, "rollouts"), (signal.SIGINT, "update")])
def test_a_signal_saves_the_run(
    number: signal.Signals, moment: str, tiny_model: Path, whole: Path, tmp_path: Path
) -> None:
    config = write_resumable_config(tmp_path, tiny_model, "r", step=4, number=number.value, moment=moment)
    ended = run_fit(config)
    assert ended.returncode == 128 + number, ended.stderr
    assert f"interrupted by {number.name}; the same command goes on" in ended.stderr
    assert "Traceback" not in ended.stderr
    run = tmp_path / "runs" / "r"
    last = 5 if moment == "update" else 4  # the update was finished, the rollouts were not
    assert f"saved {run / 'checkpoints' / f'stopped-{last}.ckpt'}" in ended.stderr
    with TraceReader(run / "trace.db") as reader:
        assert (reader.run().status, reader.run().detail) == ("stopped", f"interrupted by {number.name}")
        assert [step.step for step in reader.steps("wm_grpo")] == list(range(1, last + 1))
    again = run_fit(config)
    assert again.returncode == 0, again.stderr
    assert f"stopped-{last}.ckpt" in again.stderr
    check_equal(run, whole, tiny_model)
