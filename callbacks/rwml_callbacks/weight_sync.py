"""Synchronisation of the generator with the trainer's weights."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from typing_extensions import override

from rwml_lightning.data.datamodule import rollout_data
from rwml_lightning.data.loader import StepLoader
from rwml_lightning.generation import WeightCheck
from rwml_lightning.modules.base import PolicyModule


class WeightSync(L.Callback):
    """Update the generator after each batch, and prove that it computes with the new weights.

    Without the proof, a silent fault in the synchronisation would train the policy on samples of another policy.
    :class:`rwml_lightning.generation.WeightCheck` documents the comparison. It costs a pass over the weights and one
    short forward pass each in the trainer and in the generator.

    Args:
        tolerance: Largest mean absolute difference of the log-probabilities of a fixed sequence, in nats. ``None`` takes
            0.01 if trainer and generator compute in float32 and 0.15 if either uses a lower precision.
        num_check_tokens: Length of the fixed sequence in tokens.

    Raises:
        WeightSyncError: The generator has other weights, or computes other log-probabilities with them.
    """

    def __init__(self, tolerance: float | None = None, num_check_tokens: int = 32) -> None:
        self.seconds = self.wait = 0.0
        self.gap = 0.0
        self._check = WeightCheck(tolerance, num_check_tokens)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        if pl_module.on_policy:
            self.sync(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rollout_data(
            trainer
        ).generator.sleep()  # the batch is made, and the next one follows the next weights

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if pl_module.on_policy:
            self.sync(pl_module)
            pl_module.record({"time/wait": self.wait, "time/sync": self.seconds, "train/sync_gap": self.gap})

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.sync(pl_module)

    on_test_start = on_predict_start = on_validation_start

    def sync(self, module: PolicyModule) -> None:
        """Give the generator the module's weights, unless it already has them, when it makes no batch ahead."""
        data = rollout_data(module.trainer)
        loader, asked = module.trainer.train_dataloader, time.perf_counter()
        if isinstance(loader, StepLoader) and not loader.settled():
            return  # a signal ends the run at the next batch
        start = time.perf_counter()
        self.wait = start - asked
        gap = self._check.update(data.generator, module, module.policy_version, data.probe_ids())
        if gap is not None:
            self.gap = gap
            self.seconds = time.perf_counter() - start
