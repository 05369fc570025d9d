"""One WorldModelGRPO step against GRPO written out plainly on a padded batch, and what a step must refuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import LlamaForCausalLM

from rwml_lightning.modules import LoRA, WorldModelGRPO
from rwml_lightning.modules.base import NonFiniteError
from support.plain_grpo import (
    LENGTHS,
    Settings,
    gradients_of,
    make_batch,
    plain_loss,
    read_batch,
    with_version,
)
from support.training import fit, make, make_module

# float32; the packed and the plain path sum in different orders. Measured: below 1e-6.
TOLERANCE = 1e-5


class SaveAtFirstStep(L.Callback):
    """Writes a checkpoint after the first optimizer step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("max_tokens", [4096, 12])
def test_one_step_is_grpo_written_out(tiny_model: Path, model: LlamaForCausalLM, max_tokens: int) -> None:
    batch = make_batch(model)
    steps = fit(make_module(tiny_model, max_tokens_per_micro_batch=max_tokens), [batch])
    policy = copy.deepcopy(model)
    loss, _ = plain_loss(policy, read_batch(batch), Settings())
    gradients = gradients_of(policy, loss)
    metrics = steps.metrics[0]
    assert abs(loss.item()) > 1e-3
    assert metrics["train/loss"] == pytest.approx(loss.item(), abs=TOLERANCE)
    assert_close(steps.gradients[0], gradients, TOLERANCE)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["train/trained_tokens"] == sum(LENGTHS[0]) + sum(
        LENGTHS[1]
    )  # the third group costs nothing


def test_advantages_come_back_with_the_batch(tiny_model: Path, model: LlamaForCausalLM) -> None:
    batch = make_batch(model, ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
    steps = fit(make_module(tiny_model), [batch])
    groups = steps.outputs[0]["batch"].groups
    # (1, 0, 0): mean 1/3, sample standard deviation 1/sqrt(3).
    expected = [2 / 3 * 3**0.5, -1 / 3 * 3**0.5, -1 / 3 * 3**0.5]
    assert [p.advantage for p in groups[0].predictions] == pytest.approx(expected, abs=1e-5)
    assert [p.advantage for p in groups[2].predictions] == [0.0, 0.0, 0.0]


def test_many_micro_batches_are_one(tiny_model: Path, model: LlamaForCausalLM) -> None:
    batch = make_batch(model)
    gradients = [
        fit(make_module(tiny_model, max_tokens_per_micro_batch=n), [batch]).gradients[0] for n in (4096, 9)
    ]
    assert_close(gradients[1], gradients[0], 1e-6)


def test_groups_without_variance_cost_no_forward_and_change_no_weight(
    tiny_model: Path, model: LlamaForCausalLM
) -> None:
    batch = make_batch(model, [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)])
    module = make_module(tiny_model, weight_decay=0.1)
    module.configure_model()
    calls: list[int] = []
    module.policy.model.register_forward_hook(lambda *_: calls.append(1))
    before = {name: p.clone() for name, p in module.policy.named_parameters()}
    steps = fit(module, [batch])
    assert not calls
    assert all(torch.equal(p, before[name]) for name, p in module.policy.named_parameters())
    assert steps.metrics[0]["train/trained_tokens"] == 0
    assert module.trainer.global_step == 1


def test_kl_pulls_towards_the_model_at_the_start(
    tiny_model: Path, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """The reference is where the stage started (``init_from``), the policy has moved on since."""
    start = copy.deepcopy(model)
    with torch.no_grad():
        for p in start.parameters():
            p.mul_(1.1)
    start.save_pretrained(tmp_path / "start")
    module = make_module(tiny_model, kl_coefficient=0.3, init_from=str(tmp_path / "start"))
    module.configure_model()
    moved = copy.deepcopy(start)
    with torch.no_grad():
        for p, q in zip(module.policy.parameters(), moved.parameters(), strict=True):
            p.mul_(0.95)
            q.mul_(0.95)
    batch = make_batch(moved)
    loss, _ = plain_loss(moved, read_batch(batch), Settings(kl_coefficient=0.3), reference=start)
    gradients = gradients_of(moved, loss)
    steps = fit(module, [batch])
    metrics = steps.metrics[0]
    assert metrics["train/kl"] > 0.01
    assert metrics["train/loss"] == pytest.approx(loss.item(), abs=TOLERANCE)
    assert_close(steps.gradients[0], gradients, TOLERANCE)
    assert metrics["train/trained_tokens"] == sum(map(sum, LENGTHS))  # the penalty needs every sample


@pytest.mark.heavy
def test_kl_of_adapters_is_against_those_of_the_start(
    tiny_model: Path, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """``init_from`` is a checkpoint with adapters; a run that is resumed in the middle keeps its reference."""
    lora = LoRA(rank=4)
    earlier = make_module(tiny_model, lora=lora, learning_rate=1e-1)
    batch = make_batch(model)
    fit(earlier, [batch])
    start = tmp_path / "start.ckpt"
    earlier.trainer.save_checkpoint(start)
    stage = {"kl_coefficient": 0.3, "lora": lora, "init_from": str(start), "learning_rate": 1e-1}
    second = with_version(batch, 1)
    middle = tmp_path / "middle.ckpt"
    whole = make_module(tiny_model, **stage)
    steps = fit(whole, [batch, second], callbacks=[SaveAtFirstStep(middle)])
    first_kl, second_kl = (metrics["train/kl"] for metrics in steps.metrics)
    assert first_kl == 0
    assert second_kl > 1e-3
    resumed = make_module(tiny_model, **stage)
    steps = fit(resumed, [second, second], ckpt_path=middle)  # the loader begins anew, the count does not
    assert [metrics["train/kl"] for metrics in steps.metrics] == pytest.approx([second_kl], rel=1e-5)
    for name, tensor in whole.policy.state_dict().items():
        torch.testing.assert_close(resumed.policy.state_dict()[name], tensor)


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_model: Path, model: LlamaForCausalLM) -> None:
    batch = make_batch(model)
    group = batch.groups[1]
    member = group.predictions[1]
    logprobs = (float("nan"), *member.completion.logprobs[1:])
    broken = replace(member, completion=replace(member.completion, logprobs=logprobs))
    members = (group.predictions[0], broken, *group.predictions[2:])
    batch = replace(batch, groups=(batch.groups[0], replace(group, predictions=members)))
    module = make_module(tiny_model, max_tokens_per_micro_batch=14)
    module.configure_model()
    before = {name: p.clone() for name, p in module.policy.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"the loss is nan; nothing was updated.*t1#1") as caught:
        fit(module, [batch])
    assert "t0#0" not in str(caught.value)  # only the micro-batch at fault
    assert all(torch.equal(p, before[name]) for name, p in module.policy.named_parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    tiny_model: Path, model: LlamaForCausalLM
) -> None:
    module = make_module(tiny_model)
    module.configure_model()
    module.policy.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    before = {name: p.clone() for name, p in module.policy.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"the gradient is (inf|nan); nothing was updated.*t0#0, t0#1"):
        fit(module, [make_batch(model)])
    assert all(torch.equal(p, before[name]) for name, p in module.policy.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss_normalisation": "constant"},
            "set model.grpo.loss_constant if model.grpo.loss_normalisation is 'constant'",
        ),
        ({"loss_constant": 3.0}, "and only then"),
        ({"num_iterations": 0}, "model.grpo.num_iterations is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "model.optimizer.learning_rate is 0.0; it must be above 0"),
        ({"max_grad_norm": -1.0}, "model.optimizer.max_grad_norm is -1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(WorldModelGRPO, **{"model": "m", **arguments})


def test_an_empty_step_counts_and_changes_nothing(tiny_model: Path, model: LlamaForCausalLM) -> None:
    steps = fit(make_module(tiny_model), [replace(make_batch(model), groups=())])
    assert steps.metrics[0]["train/trained_tokens"] == 0
    assert steps.outputs[0]["batch"].groups == ()
