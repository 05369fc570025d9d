"""Training on prepared batches with the real trainer, records of each step, and comparison of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.grpo import GRPO, GRPOModule
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import Label

# In float32 the packed and the plain path sum in different orders. Measured differences are below 2e-6.
TOLERANCE = 1e-5
Module = TypeVar("Module", bound=PolicyModule)
LABELS = (Label("a", (5, 6, 7), (8, 9)), Label("b", (5, 6), (10,)), Label("c", (5, 6, 7), (8, 40, 41)))


class Batches(L.LightningDataModule):
    """Load prepared batches, one per step."""

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__()
        self.batches = list(batches)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


class Steps(L.Callback):
    """Record the outputs of each step, its metrics, and the gradients of its optimizer step."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.metrics: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.policy.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs.append(outputs)

    def on_step_metrics(
        self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float], batch: Any
    ) -> None:
        self.metrics.append(dict(metrics))


def fit(module: L.LightningModule, batches: Sequence[Any], **trainer: Any) -> Steps:
    """Train on prepared batches with the real trainer, one optimizer step each."""
    steps = Steps()
    ckpt_path = trainer.pop("ckpt_path", None)
    L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=trainer.pop("enable_checkpointing", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[steps, *trainer.pop("callbacks", [])],
        **trainer,
    ).fit(module, Batches(batches), ckpt_path=ckpt_path, weights_only=True)
    return steps


class Weights(L.Callback):
    """Record the weights before each optimizer step."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append({name: p.detach().clone() for name, p in pl_module.policy.named_parameters()})


def run(module: Any, batches: Sequence[Any]) -> tuple[Steps, list[dict[str, torch.Tensor]]]:
    """Train on the batches; return the record of the steps, and the weights before each step and after the last."""
    weights = Weights()
    steps = fit(module, batches, callbacks=[weights])
    last = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    return steps, [*weights.before, last]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=TOLERANCE, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def make(kind: type[Module], **settings: Any) -> Module:
    """Make a module from flat settings; settings of the optimizer and the GRPO update go into their config groups."""
    groups: dict[str, type[Any]] = {"optimizer": Optimizer}
    if issubclass(kind, GRPOModule):
        groups["grpo"] = GRPO
    for name, group in groups.items():
        known = {field.name for field in fields(group)}
        settings[name] = group(**{key: settings.pop(key) for key in list(settings) if key in known})
    return kind(**settings)


def make_module(folder: Path, **arguments: object) -> WorldModelGRPO:
    defaults: dict[str, object] = {"learning_rate": 1e-2, "max_grad_norm": 1e9}
    return make(WorldModelGRPO, model=str(folder), **{**defaults, **arguments})
