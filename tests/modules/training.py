"""Training on prepared batches, with the weights kept that each step began with; and comparing gradients by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from rwml_testing import Steps, fit

from rwml_lightning.data.batches import Label

# float32; the packed and the plain path sum in different orders. Measured: below 2e-6.
TOLERANCE = 1e-5
LABELS = (Label("a", (5, 6, 7), (8, 9)), Label("b", (5, 6), (10,)), Label("c", (5, 6, 7), (8, 40, 41)))


class Weights(L.Callback):
    """Keeps the weights that each optimizer step began with."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append({name: p.detach().clone() for name, p in pl_module.policy.named_parameters()})


def run(module: Any, batches: Sequence[Any]) -> tuple[Steps, list[dict[str, torch.Tensor]]]:
    """What the steps gave, and the weights before each of them and after the last."""
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
