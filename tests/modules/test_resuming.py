"""What a checkpoint brings back, piece by piece: moments, counters, random numbers, and never a setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from rwml_lightning.modules import LoRA, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.resuming import LearningRate, keep_settings, reopen_epoch
from rwml_lightning.schema import LabelledBatch
from support.plain_grpo import make_batch, with_version
from support.training import LABELS, fit, make, run

BATCHES = [LabelledBatch(step, LABELS) for step in range(5)]


def make_optimizer(learning_rate: float, weight_decay: float) -> tuple[list[torch.Tensor], torch.optim.AdamW]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))]
    optimizer = torch.optim.AdamW(
        [{"params": weights[:1]}, {"params": weights[1:]}], lr=learning_rate, weight_decay=weight_decay
    )
    optimizer.register_load_state_dict_pre_hook(keep_settings)
    return weights, optimizer


def test_an_optimizer_takes_the_moments_and_keeps_its_settings() -> None:
    weights, saved = make_optimizer(0.1, 0.0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    saved.step()
    state = saved.state_dict()
    _, resumed = make_optimizer(0.7, 0.3)
    resumed.load_state_dict(state)
    assert [(g["lr"], g["weight_decay"]) for g in resumed.param_groups] == [(0.7, 0.3)] * 2
    for number in range(2):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(
                resumed.state_dict()["state"][number][name], state["state"][number][name]
            )
    assert [(g["lr"], g["weight_decay"]) for g in state["param_groups"]] == [(0.1, 0.0)] * 2  # left as it was


def test_an_optimizer_of_other_groups_is_refused() -> None:
    _, saved = make_optimizer(0.1, 0.0)
    state = saved.state_dict()
    state["param_groups"] = state["param_groups"][:1]
    with pytest.raises(ValueError, match="zip"):
        make_optimizer(0.1, 0.0)[1].load_state_dict(state)


def test_a_schedule_goes_on_where_its_own_would_be() -> None:
    """Resumed at step 3 with another rate and another shape, against a run that always had them."""

    def rates(optimizer: torch.optim.Optimizer, schedule: LambdaLR, num_steps: int) -> list[list[float]]:
        found = []
        for _ in range(num_steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            assert schedule.get_last_lr() == found[-1]
            optimizer.step()
            schedule.step()
        return found

    def falling(step: int) -> float:
        return 1 / (step + 1)

    _, first = make_optimizer(0.1, 0.0)
    schedule = LearningRate(first, lambda step: 1.0)
    rates(first, schedule, 3)
    _, whole = make_optimizer(0.7, 0.0)
    expected = rates(whole, LearningRate(whole, falling), 6)
    _, second = make_optimizer(0.7, 0.0)
    resumed = LearningRate(second, falling)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.state_dict()["_step_count"] == schedule.state_dict()["_step_count"] == 4
    assert rates(second, resumed, 3) == expected[3:]


@pytest.mark.parametrize(
    ("schedule", "step", "total", "factor"),
    [
        ("linear", 1, 3, 2 / 3),
        ("linear", 2, 3, 1.0),
        ("linear", 3, 3, 0.0),
        ("linear", 2, 2, 1.0),  # a stage that ends with its warm-up
        ("linear", 7, 3, 0.0),  # resumed beyond the end: never below 0
        ("cosine", 3, 4, 0.5),
        ("cosine", 7, 3, 0.0),
        ("constant", 7, 3, 1.0),
    ],
)
def test_the_schedule_at_its_ends(schedule: Any, step: int, total: int, factor: float) -> None:
    assert Optimizer(schedule=schedule, warmup_steps=2).factor(step, total) == pytest.approx(factor)


def test_an_only_epoch_is_open_again() -> None:
    def progress() -> dict[str, dict[str, int]]:
        return {
            name: {"ready": 2, "started": 2, "processed": 2, "completed": 2} for name in ("total", "current")
        }

    batches = {"is_last_batch": True, "total": {"ready": 9}}
    fit_loop: dict[str, Any] = {"epoch_progress": progress(), "epoch_loop.batch_progress": batches}
    checkpoint = {"loops": {"fit_loop": fit_loop, "validate_loop": {"epoch_progress": progress()}}}
    reopen_epoch(checkpoint)
    opened = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert fit_loop["epoch_progress"] == {"total": opened, "current": opened}
    assert fit_loop["epoch_loop.batch_progress"] == {"is_last_batch": False, "total": {"ready": 9}}
    assert checkpoint["loops"]["validate_loop"] == {"epoch_progress": progress()}


@pytest.mark.heavy
def test_a_run_that_ended_goes_on_with_more_steps_as_if_it_had_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "model": str(tiny_model), "learning_rate": 1e-2, "lora": LoRA(4, 8), "schedule": "linear"
    }  # fmt: skip
    torch.manual_seed(7)
    whole = make(WorldModelSFT, **settings)
    fit(whole, BATCHES)
    torch.manual_seed(7)
    first = make(WorldModelSFT, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(WorldModelSFT, "num_planned_steps", 5)
        fit(first, BATCHES[:2])
    first.trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(1)
    second = make(WorldModelSFT, **settings)
    # These loaders begin anew; the trainer's count of batches, which is 2, goes on.
    steps = fit(second, BATCHES, ckpt_path=tmp_path / "a.ckpt")
    assert (len(steps.outputs), second.policy_version) == (3, 5)
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(second.policy.state_dict()[name], value, msg=name)


def test_random_numbers_go_on_where_the_checkpoint_stood(tiny_model: Path, tmp_path: Path) -> None:
    """Dropout of adapters draws them; a test of whole runs is in test_resume_settings."""
    module = WorldModelSFT(model=str(tiny_model))
    fit(module, BATCHES[:1])
    module.trainer.save_checkpoint(tmp_path / "a.ckpt")
    expected = torch.rand(3)
    WorldModelSFT(model=str(tiny_model)).on_load_checkpoint(
        torch.load(tmp_path / "a.ckpt", weights_only=True)
    )
    assert torch.equal(torch.rand(3), expected)


def test_a_step_without_samples_moves_no_weight_by_momentum(
    tiny_model: Path, model: LlamaForCausalLM
) -> None:
    batches = [make_batch(model), replace(with_version(make_batch(model), 1), groups=())]
    module = make(WorldModelGRPO, model=str(tiny_model), learning_rate=1e-2, weight_decay=0.1)
    steps, weights = run(module, batches)
    assert steps.gradients[0].keys() == weights[0].keys()
    assert steps.gradients[1] == {}
    assert not torch.equal(weights[0]["model.norm.weight"], weights[1]["model.norm.weight"])
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
