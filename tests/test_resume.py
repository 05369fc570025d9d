"""A run that is killed and started again by the same command ends where an uninterrupted one does."""

from __future__ import annotations

import os
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


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    whole = run_fit(write_resumable_config(tmp_path, tiny_model, "whole", kill_at=None))
    assert whole.returncode == 0, whole.stderr
    # The last checkpoint before the kill is of step 3.
    broken = write_resumable_config(tmp_path, tiny_model, "broken", kill_at=6)
    assert run_fit(broken).returncode == -9
    folder, expected = tmp_path / "runs" / "broken", tmp_path / "runs" / "whole"
    assert not (folder / "export").exists()
    again = run_fit(broken)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["broken", "whole"]

    ours, theirs = (load_file(f / "export" / "model.safetensors") for f in (folder, expected))
    start = load_file(tiny_model / "model.safetensors")
    assert any(not torch.equal(start[name], theirs[name]) for name in start)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # bit by bit

    def timeless(f: Path) -> list[tuple[str, int, str, float]]:
        return sorted(m for m in metrics_of(f) if not m[2].startswith(("time/", "throughput/")))

    assert max(Counter(metric[:3] for metric in metrics_of(folder)).values()) == 1
    assert timeless(folder) == timeless(expected)
    trained = [value for _, _, name, value in timeless(folder) if name == "train/grad_norm"]
    assert sum(value > 0 for value in trained) >= NUM_STEPS // 2  # groups had variance

    with TraceReader(folder / "trace.db") as reader, TraceReader(expected / "trace.db") as other:
        assert [step.step for step in reader.steps("wm_grpo")] == list(range(1, NUM_STEPS + 1))
        assert [step.step for step in reader.steps("wm_sft")] == [1, 2]
        assert len(reader.evaluations()) == len(other.evaluations()) == 3
        assert reader.count_groups(GroupQuery()) == other.count_groups(GroupQuery())
        assert reader.run().status == "finished"

    finished = run_fit(broken)  # a third time there is nothing left to do
    assert finished.returncode == 0, finished.stderr
    assert "Run folder" in finished.stdout
    assert timeless(folder) == timeless(expected)
