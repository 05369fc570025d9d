"""Checkpoints every N optimizer steps, for any number of steps per batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from rwml_callbacks.passing import passes_multiple
from rwml_lightning.interrupts import Interrupted
from rwml_lightning.modules.base import PolicyModule

log = logging.getLogger(__name__)


class StepCheckpoint(ModelCheckpoint):
    """Save a checkpoint after each batch that reaches or passes a multiple of N optimizer steps, and keep the newest.

    Lightning's own class saves only when the step count after a batch is a multiple, which is rare if a batch takes
    several steps. A run that a signal interrupts in training is saved as ``stopped-<step>.ckpt``.

    Args:
        folder: Folder of the file ``step-<step>.ckpt``.
        every_n_steps: Optimizer steps between two checkpoints.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint_every is {every_n_steps}; it must be at least 1")
        super().__init__(
            folder, filename="step-{step}", every_n_train_steps=1, save_top_k=1, monitor="step", mode="max",
            auto_insert_metric_name=False,
        )  # fmt: skip
        self.every_n_steps = every_n_steps

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if passes_multiple(trainer.global_step, pl_module.steps_per_batch, self.every_n_steps):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        training = trainer.state.fn == TrainerFn.FITTING and trainer.global_step
        if training and isinstance(exception, Interrupted) and exception.in_order:
            assert self.dirpath is not None
            path = Path(self.dirpath) / f"stopped-{trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            log.warning("saved %s", path)
