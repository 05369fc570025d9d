"""Configs of short runs, a callback that kills a run, and readers of the files of runs."""

from __future__ import annotations

import csv
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
class SignalOnce(L.Callback):
    """Send a signal to the process at one moment of training, but only once.

    Args:
        step: Number of finished optimizer steps at that moment.
        mark: File that shows that the signal was sent before.
        number: Number of the signal.
        moment: ``update`` is after the rollouts of the next step, ``recording`` after the update of this step and before
            its recording, ``rollouts`` in the rollouts of the next step, ``validation`` in a validation between two steps.
        rank: Rank that gets the signal.
    """

    step: int
    mark: str
    number: int = int(signal.SIGKILL)
    moment: Literal["update", "recording", "rollouts", "validation"] = "recording"
    rank: int = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._send(trainer, "update")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._send(trainer, "recording")
        if self.moment == "rollouts":
            generator = trainer.datamodule.generator  # type: ignore[attr-defined]
            generate = type(generator).generate

            def interrupted(*arguments: Any) -> Any:
                self._send(trainer, "rollouts")
                return generate(generator, *arguments)

            generator.generate = interrupted

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self._send(trainer, "validation")

    def _send(self, trainer: L.Trainer, moment: str) -> None:
        here = moment == self.moment and trainer.global_rank == self.rank
        if here and trainer.global_step == self.step and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), self.number)


NUM_STEPS = 8


def write_resumable_config(folder: Path, model: Path, name: str, **signal_once: Any) -> Path:
    """Write the config of a short run: two warm-up steps, eight GRPO steps in two passes, a checkpoint every three steps.

    Args:
        folder: Folder of the config, the transitions and the runs.
        model: Model folder.
        name: Name of the run.
        **signal_once: Arguments of :class:`SignalOnce`, if the run gets a signal.
    """
    transitions = folder / "transitions.parquet"
    if not transitions.exists():
        write_transitions(transitions, make_world())
    callbacks: list[dict[str, Any]] = []
    if signal_once:
        arguments = {"mark": str(folder / f"{name}.sent"), **signal_once}
        callbacks = [{"class_path": "support.runs.SignalOnce", "init_args": arguments}]
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
