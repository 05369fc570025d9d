"""Lightning's trainer, with the commands that Lightning does not have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import Logger

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import printable

NO_TRAINING: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None,
    "logger": False, "callbacks": [],
}  # fmt: skip
"""Trainer settings of a command that trains nothing, so that it runs where the config's own devices are missing."""


class RWMLTrainer(L.Trainer):
    """Lightning's trainer, with ``collect``, ``evaluate``, ``audit`` and ``what_if`` as commands."""

    def collect(self, model: PolicyModule, datamodule: RolloutDataModule) -> None:
        """Roll out, write transitions, nothing else."""
        if datamodule.path.exists():
            told = (
                f"{datamodule.path} is there already; name another file in data.transitions to collect anew"
            )
            print(printable(told))
            return
        datamodule.collect(model)

    def audit(
        self,
        model: PolicyModule,
        datamodule: RolloutDataModule,
        default_output: Callable[[], Path],
        split: Literal["train", "validation", "all"] = "validation",
        num_transitions: int | None = None,
        output: str | None = None,
    ) -> None:
        """Tell what the reward can and cannot see, before any training; no language model is loaded.

        Args:
            model: Unused.
            datamodule: Its reward is audited on its transitions.
            default_output: Names the folder of the result where ``output`` does not.
            split: Transitions whose next states are varied.
            num_transitions: Most of them, a fixed random draw; ``null`` takes all.
            output: Folder of the result; ``null`` takes ``<run.root>/<run.name>-audit``.
        """
        from rwml_lightning.audit import run_audit

        folder = default_output if output is None else lambda: Path(output)
        run_audit(
            datamodule.reward, datamodule.path, folder, split, num_transitions, datamodule.on_broken, datamodule.seed
        )  # fmt: skip

    def evaluate(
        self,
        model: PolicyModule,
        datamodule: RolloutDataModule,
        settings: Mapping[str, Any],
        loggers: Sequence[Logger],
        models: list[str],
        output: str | None = None,
    ) -> None:
        """Compare several models on the same held-out transitions.

        Args:
            model: Has the dtype of models that are no checkpoints.
            datamodule: Held-out transitions, generator and reward.
            settings: What results depend on beside models and transitions, as plain values.
            loggers: Get the comparison.
            models: Checkpoints (.ckpt), folders, hub ids or package: names; the others are compared with the first.
            output: Folder of the results; runs/evaluate-<run.name> when left out.
        """
        from rwml_lightning.compare import compare

        assert output is not None
        compare(self, model, datamodule, models, Path(output), settings, loggers)

    def what_if(
        self,
        model: PolicyModule,
        datamodule: RolloutDataModule,
        weights: str | None = None,
        group_size: int = 4,
    ) -> None:
        """Answer, line by line on standard input and output, what a model foresees of an action and what happens.

        Args:
            model: Its model is asked where ``weights`` names no other.
            datamodule: Environment, prompt and evaluator.
            weights: Checkpoint (.ckpt), model folder, hub id, package: name, or run folder, whose newest are taken.
            group_size: Predictions an action.
        """
        from rwml_lightning.what_if import newest_weights, own_output, serve

        with own_output() as answers:
            serve(
                datamodule,
                newest_weights(model.model, weights),
                model.dtype_name,
                group_size,
                sys.stdin,
                answers,
            )
