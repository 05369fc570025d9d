"""Brings the trainer's weights to the generator, and proves that they arrived."""

from __future__ import annotations

import time
import weakref
from typing import Any

import lightning as L
from typing_extensions import override

from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules.base import PolicyModule


class WeightSyncError(RuntimeError):
    """The generator does not compute what the trainer computes."""


class WeightSync(L.Callback):
    """Updates the generator after each optimizer step, then compares both sides' log-probabilities of a fixed sequence.

    A synchronisation that is silently wrong trains on another policy's samples for as long as nobody looks; the
    comparison costs one short forward pass.

    Args:
        tolerance: Largest mean absolute difference of the log-probabilities, in nats; ``None`` takes 0.01 for float32 and
            0.15 for lower precision, of either side.
        num_check_tokens: Length of the fixed sequence.

    Raises:
        WeightSyncError: The two sides differ by more.
    """

    def __init__(self, tolerance: float | None = None, num_check_tokens: int = 32) -> None:
        self.tolerance = tolerance
        self.num_check_tokens = num_check_tokens
        self.seconds = 0.0
        self.gap = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        if pl_module.on_policy:
            self.sync(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if pl_module.on_policy:
            self.sync(pl_module)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.sync(pl_module)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.sync(pl_module)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.sync(pl_module)

    def sync(self, module: PolicyModule) -> None:
        """Give the generator the module's weights unless it has them."""
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        version = (module.stage, module.policy_version, weakref.ref(module))  # an id may return
        if getattr(data.generator, "synced", None) == version:
            return
        start = time.perf_counter()
        if isinstance(data.generator, HFGenerator):
            data.generator.attach(module.policy)  # decodes with the trainer's own weights: nothing to copy
        data.generator.update_weights(module.generator_tensors(), module.policy_version)
        self.gap = self.check(module)
        data.generator.synced = version
        self.seconds = time.perf_counter() - start

    def check(self, module: PolicyModule) -> float:
        """Mean absolute difference of both sides' log-probabilities of the fixed sequence, in nats."""
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        probe = data.probe_ids()[: self.num_check_tokens]
        theirs = data.generator.score([probe])[0]
        ours = module.score(probe)
        gap = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        tolerance = self.tolerance if self.tolerance is not None else self._tolerance(module)
        if not gap <= tolerance:
            raise WeightSyncError(
                f"after the weight update at step {module.policy_version} generator and trainer disagree on a fixed "
                f"sequence by {gap:.4f} nats a token (tolerance {tolerance}). Training would go on with another policy's "
                "samples. Do both load the same model in the same dtype?"
            )
        return gap

    @staticmethod
    def _tolerance(module: PolicyModule) -> float:
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        dtypes = {module.dtype_name, getattr(data.generator, "dtype", "float32")}
        return 0.01 if dtypes <= {"float32", "auto", None} else 0.15
