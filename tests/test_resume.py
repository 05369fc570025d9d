"""A run that is killed and started again by the same command ends where an uninterrupted one does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rwml_testing import make_world
from safetensors.torch import load_file

from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.trace import GroupQuery, TraceReader

TESTS = Path(__file__).parent
NUM_STEPS = 8


def write_config(folder: Path, model: Path, name: str, kill_at: int | None) -> Path:
    """A short run: a warm-up of two steps, eight steps of GRPO over two passes, a checkpoint every three."""
    transitions = folder / "transitions.parquet"
    if not transitions.exists():
        write_transitions(transitions, make_world())
    callbacks: list[dict[str, Any]] = []
    if kill_at is not None:
        arguments = {"step": kill_at, "mark": str(folder / f"{name}.killed")}
        callbacks = [{"class_path": "rwml_testing.KillOnce", "init_args": arguments}]
    config = {
        "seed_everything": 3,
        "run": {"name": name, "root": str(folder / "runs")},
        "warm_up": {"num_transitions": 8, "batch_size": 4, "learning_rate": 1e-3},
        "checkpoint_every": 3,
        "trainer": {"accelerator": "cpu", "callbacks": callbacks},
        "model": {
            "class_path": "rwml_lightning.modules.WorldModelGRPO",
            "init_args": {
                "model": str(model),
                "learning_rate": 2e-3,
                "learning_rate_schedule": "linear",
                "kl_coefficient": 0.01,
            },
        },
        "data": {
            "transitions": str(transitions),
            "generator": {"class_path": "rwml_lightning.generation.HFGenerator"},
            "reward": {"class_path": "rwml_testing.LetterReward", "init_args": {"tau_d": 0.05}},
            "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
            "sampling": {"max_tokens": 20},
            "prompts_per_step": 8,
            "group_size": 4,
            "num_passes": 2,
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def run_fit(config: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",  # one order of summation
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", "rwml_lightning", "fit", "--config", str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def metrics_of(folder: Path) -> list[tuple[str, int, str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(r["stage"], int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(file)]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    whole = run_fit(write_config(tmp_path, tiny_model, "whole", kill_at=None))
    assert whole.returncode == 0, whole.stderr
    broken = write_config(tmp_path, tiny_model, "broken", kill_at=6)  # its last checkpoint is of step 3
    assert run_fit(broken).returncode == -9
    folder, expected = tmp_path / "runs" / "broken", tmp_path / "runs" / "whole"
    assert not (folder / "export").exists()
    again = run_fit(broken)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
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
