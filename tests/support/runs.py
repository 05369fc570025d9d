"""Configs of short runs, a callback that kills a run, and readers of the files of runs."""

from __future__ import annotations

import csv
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from rwml_lightning.data.transitions import write_transitions
from support.worlds import make_world


def write_config(folder: Path, policy: Path, **changes: Any) -> Path:
    """Write transitions of :func:`make_world`, and the config of a run of two steps; see :func:`make_config`."""
    write_transitions(folder / "t.parquet", make_world())
    return make_config(folder, policy, **changes)


def make_config(folder: Path, policy: str | Path, **changes: Any) -> Path:
    """Write the config of a run of two steps on the folder's ``t.parquet``.

    Args:
        folder: Folder of the config, the transitions and the runs.
        policy: Model folder.
        **changes: Values of top-level keys. A mapping is merged into its section; ``predictions`` is ``data.predictions``.
    """
    config: dict[str, Any] = {
        "run": {"name": "r", "root": str(folder / "runs")},
        "trainer": {"accelerator": "cpu", "max_steps": 2},
        "model": {
            "class_path": "rwml_lightning.modules.WorldModelGRPO",
            "init_args": {"model": str(policy)},
        },
        "data": {"generator": {"class_path": "rwml_lightning.generation.HFGenerator"}},
    }
    predictions = {
        "transitions": str(folder / "t.parquet"),
        "reward": {"class_path": "support.rewards.LetterReward"},
        "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
        "sampling": {"max_tokens": 20},
        "prompts_per_step": 4,
        "group_size": 4,
    }
    config["data"]["predictions"] = predictions | changes.pop("predictions", {})
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@dataclass
class KillOnce(L.Callback):
    """Kill the process in the middle of a step as ``kill -9`` does, but only once.

    Args:
        step: Number of the optimizer step; the process is killed after its update and before its recording.
        mark: File that shows that the process was killed before.
    """

    step: int
    mark: str

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


NUM_STEPS = 8


def write_resumable_config(folder: Path, model: Path, name: str, kill_at: int | None) -> Path:
    """Write the config of a short run: two warm-up steps, eight GRPO steps in two passes, a checkpoint every three steps."""
    transitions = folder / "transitions.parquet"
    if not transitions.exists():
        write_transitions(transitions, make_world())
    callbacks: list[dict[str, Any]] = []
    if kill_at is not None:
        arguments = {"step": kill_at, "mark": str(folder / f"{name}.killed")}
        callbacks = [{"class_path": "support.runs.KillOnce", "init_args": arguments}]
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
                "optimizer": {"learning_rate": 2e-3, "schedule": "linear"},
                "grpo": {"kl_coefficient": 0.01},
            },
        },
        "data": {
            "generator": {"class_path": "rwml_lightning.generation.HFGenerator"},
            "predictions": {
                "transitions": str(transitions),
                "reward": {"class_path": "support.rewards.LetterReward", "init_args": {"tau_d": 0.05}},
                "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
                "sampling": {"max_tokens": 20},
                "prompts_per_step": 8,
                "group_size": 4,
                "num_passes": 2,
            },
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def metrics_of(folder: Path) -> list[tuple[str, int, str, float]]:
    """Read the ``metrics.csv`` of a run folder: stage, step, name and value."""
    return rows_of(folder / "metrics.csv")


def rows_of(path: Path) -> list[tuple[str, int, str, float]]:
    """Read a CSV file of metrics: stage, step, name and value."""
    with path.open(newline="") as file:
        return [(r["stage"], int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(file)]


class SlowSteps(L.Callback):
    """Lets each step take a while, so that somebody can ask for something."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        time.sleep(0.5)


class FailOnOneRank(L.Callback):
    """Fails on the second of two ranks, after the second step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise RuntimeError("the disk of rank 1 is full")
