"""Each setting of the optimizer, off its default, against the same step written out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import LlamaForCausalLM

from rwml_lightning.modules import GRPO, WorldModelGRPO, WorldModelSFT
from rwml_lightning.schema import Label, LabelledBatch
from support.plain_grpo import make_batch
from support.training import Steps, fit, make, make_module

LABELS = (Label("a", (5, 9, 14), (20, 21, 22)), Label("b", (5, 9), (30, 31)))


class Rates(L.Callback):
    """Keeps the learning rate and the weights that each optimizer step begins with."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.weights.append({name: p.detach().clone() for name, p in pl_module.policy.named_parameters()})


def train(folder: Path, num_steps: int, **arguments: Any) -> tuple[WorldModelSFT, Rates, Steps]:
    module = make(WorldModelSFT, model=str(folder), **arguments)
    rates = Rates()
    steps = fit(module, [LabelledBatch(n, LABELS) for n in range(num_steps)], callbacks=[rates])
    return module, rates, steps


@pytest.mark.parametrize(
    ("schedule", "after_warm_up"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_learning_rate_of_each_step(tiny_model: Path, schedule: str, after_warm_up: list[float]) -> None:
    """Two steps of warm-up, four after it; only the step after the last would have none left."""
    _, rates, _ = train(tiny_model, 6, learning_rate=3e-3, schedule=schedule, warmup_steps=2)
    assert rates.rates == pytest.approx([1e-3, 2e-3, *(3e-3 * factor for factor in after_warm_up)])


@pytest.mark.parametrize(("max_steps", "num_steps"), [(2, 2), (3, 3), (100, 4)])
def test_the_schedule_counts_optimizer_steps(tiny_model: Path, max_steps: int, num_steps: int) -> None:
    """Two a batch, and one where ``max_steps`` ends the stage; a step's metrics have its own learning rate."""
    module = make_module(tiny_model, num_iterations=2, schedule="linear", learning_rate=1e-3, max_staleness=2)
    batch, rates = make_batch(LlamaForCausalLM.from_pretrained(tiny_model)), Rates()
    steps = fit(module, [batch, batch], max_steps=max_steps, callbacks=[rates])
    expected = [1e-3 * (num_steps - step) / num_steps for step in range(num_steps)]
    assert rates.rates == pytest.approx(expected)
    last_of_batches = [expected[min(end, num_steps) - 1] for end in range(2, num_steps + 2, 2)]
    assert [metrics["train/learning_rate"] for metrics in steps.metrics] == pytest.approx(last_of_batches)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_two_steps_are_adamw_with_decoupled_decay(tiny_model: Path, weight_decay: float) -> None:
    rate = 1e-2
    module, rates, steps = train(
        tiny_model, 2, learning_rate=rate, weight_decay=weight_decay, max_grad_norm=1e9
    )
    first, second = steps.gradients
    for name, after in module.policy.named_parameters():
        begin, middle = rates.weights[0][name], rates.weights[1][name]
        g, h = first[name], second[name]
        expected = begin * (1 - rate * weight_decay) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(middle, expected, atol=1e-6, rtol=1e-5)
        mean = (0.9 * 0.1 * g + 0.1 * h) / (1 - 0.9**2)
        variance = (0.95 * 0.05 * g**2 + 0.05 * h**2) / (1 - 0.95**2)
        expected = middle * (1 - rate * weight_decay) - rate * mean / (variance.sqrt() + 1e-8)
        torch.testing.assert_close(after.detach(), expected, atol=1e-6, rtol=1e-5)


def test_gradients_are_shortened_to_their_longest(tiny_model: Path) -> None:
    _, _, free = train(tiny_model, 1, max_grad_norm=1e9)
    _, _, cut = train(tiny_model, 1, max_grad_norm=0.01)

    def norm(gradients: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))

    assert norm(free.gradients[0]) > 0.02
    assert norm(cut.gradients[0]) == pytest.approx(0.01, rel=1e-4)
    for steps in (free, cut):
        assert steps.metrics[0]["train/grad_norm"] == pytest.approx(norm(free.gradients[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("limit", "per_batch", "planned"), [(-1, 1, 12), (-1, 2, 24), (5, 1, 5), (20, 2, 20), (0, 1, 0)]
)
def test_planned_are_the_steps_of_all_batches_up_to_the_limit(
    limit: int, per_batch: int, planned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.Trainer, "estimated_stepping_batches", 12)
    module = WorldModelGRPO(model="none", grpo=GRPO(num_iterations=per_batch))
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=limit)
    assert module.num_planned_steps == planned
