"""Every setting off its default, through the real module and trainer, against the update written out plainly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import rwml_lightning.functional.logprobs as head
import rwml_lightning.modules.loading as loading
from rwml_lightning.modules import LoRA, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.grpo import GRPO
from rwml_lightning.schema import Label, LabelledBatch
from support.plain_grpo import (
    Settings,
    gradients_of,
    make_batch,
    plain_logprobs,
    plain_loss,
    read_batch,
    with_version,
    with_weights,
)
from support.training import LABELS, assert_close, distance, fit, make, run


def module_arguments(settings: Settings) -> dict[str, Any]:
    """The temperature is the batch's."""
    return {name: value for name, value in asdict(settings).items() if name != "temperature"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("setting", "value", "beside"),
    [
        ("temperature", 0.7, {}),
        ("temperature", 1.3, {"kl_coefficient": 0.3}),
        ("clip_low", 0.02, {}),
        ("clip_high", 0.02, {}),
        ("advantage_normalisation", "mean", {}),
        ("advantage_normalisation", "leave_one_out", {}),
        ("loss_normalisation", "token", {}),
        ("loss_constant", 5.0, {"loss_normalisation": "constant"}),
        ("kl_coefficient", 0.3, {}),
        ("kl_estimator", "k1", {"kl_coefficient": 0.3}),
        ("kl_estimator", "k2", {"kl_coefficient": 0.3}),
        ("importance_cap", None, {}),
        ("importance_cap", 1.1, {}),
    ],
)
def test_grpo_at_every_setting(
    tiny_model: Path, model: LlamaForCausalLM, setting: str, value: Any, beside: dict[str, Any]
) -> None:
    """Three updates on one rollout: gradients of each, and the metrics of the last."""
    settings = replace(Settings(**beside), **{setting: value})
    batch = replace(make_batch(model), temperature=settings.temperature)
    texts = read_batch(batch, settings.advantage_normalisation)
    module = make(
        WorldModelGRPO,
        model=str(tiny_model),
        num_iterations=3,
        learning_rate=3e-4,
        max_grad_norm=1e9,
        **module_arguments(settings),
    )
    steps, weights = run(module, [batch])
    with torch.no_grad():
        old = [plain_logprobs(model, text, settings.temperature) for text in texts]
        default = Settings(**beside).temperature
        default_old = [plain_logprobs(model, text, default) for text in texts]
    assert module.trainer.global_step == len(steps.gradients) == 3
    differences = []
    for iteration, found in enumerate(steps.gradients):
        policy = with_weights(model, weights[iteration])
        loss, metrics = plain_loss(policy, texts, settings, old, reference=model)
        assert_close(found, gradients_of(policy, loss))
        without = Settings(**beside)
        plain, _ = plain_loss(
            policy, read_batch(batch, without.advantage_normalisation), without, default_old, reference=model
        )
        differences.append(distance(found, gradients_of(policy, plain)))
    assert max(differences) > 1e-3  # the setting matters here, so one that is ignored is found
    for name, expected in metrics.items():
        assert steps.metrics[0][name] == pytest.approx(expected, abs=1e-4), name


def test_every_setting_of_the_update_is_in_the_plain_one() -> None:
    """A setting that is added to GRPO must be added to the table above as well."""
    known = {field.name for field in fields(Settings)} - {"temperature"}
    own = {field.name for field in fields(GRPO)}
    # In tests of their own, and where the reference lies changes no number.
    assert own - known == {"num_iterations", "max_staleness", "reference_device"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "factors"),
    [
        ({"learning_rate": 3e-3}, [1, 1, 1, 1]),
        ({"weight_decay": 0.5}, [1, 1, 1, 1]),
        ({"max_grad_norm": 0.01}, [1, 1, 1, 1]),
        ({"warmup_steps": 2}, [1 / 3, 2 / 3, 1, 1]),
        (
            {"schedule": "linear", "warmup_steps": 1},
            [1 / 2, 1, 2 / 3, 1 / 3],
        ),
        ({"schedule": "cosine"}, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_weights_after_each_step_are_those_of_plain_adamw(
    tiny_model: Path, model: LlamaForCausalLM, arguments: dict[str, Any], factors: Sequence[float]
) -> None:
    settings: dict[str, Any] = {
        "learning_rate": 1e-2, "weight_decay": 0.0, "max_grad_norm": 1e9, **arguments
    }  # fmt: skip
    batches = [with_version(make_batch(model), version) for version in range(4)]
    steps, weights = run(make(WorldModelGRPO, model=str(tiny_model), **settings), batches)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        plain.parameters(), settings["learning_rate"], (0.9, 0.95), weight_decay=settings["weight_decay"]
    )
    texts = read_batch(batches[0])
    for step, factor in enumerate(factors):
        policy = with_weights(model, weights[step])
        gradients = gradients_of(policy, plain_loss(policy, texts, Settings())[0])
        norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
        assert steps.metrics[step]["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
        scale = min(1, settings["max_grad_norm"] / norm)
        assert_close(steps.gradients[step], {name: scale * g for name, g in gradients.items()})
        # The optimizer alone, from the module's own weights and gradients: it would magnify their rounding.
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(weights[step][name])
            parameter.grad = steps.gradients[step][name]
        optimizer.param_groups[0]["lr"] = settings["learning_rate"] * factor
        optimizer.step()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(
                weights[step + 1][name], parameter.detach(), atol=1e-6, rtol=1e-5, msg=name
            )


@pytest.mark.parametrize(("arguments", "most"), [({"head_chunk_size": 4}, 4), ({}, 40)])
def test_logits_exist_for_a_chunk_of_positions_at_once(
    tiny_model: Path,
    model: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    most: int,
) -> None:
    rows: list[int] = []
    logits = head._logits

    def watched(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(hidden, *others)

    monkeypatch.setattr(head, "_logits", watched)
    monkeypatch.setattr(loading, "verify_packing", lambda policy: 0.0)  # it computes a few of its own
    batch = make_batch(model)
    module = make(
        WorldModelGRPO, model=str(tiny_model), max_grad_norm=1e9, kl_coefficient=0.3, **arguments
    )  # policy and reference
    steps = fit(module, [batch])
    assert max(rows) <= most
    assert (min(rows) > 4) == (most > 4)
    rows.clear()
    sft = make(WorldModelSFT, model=str(tiny_model), max_grad_norm=1e9, **arguments)
    fit(sft, [LabelledBatch(0, LABELS)])
    assert max(rows) == min(most, 5)  # five distinct predictions in the labels
    policy = copy.deepcopy(model)
    loss, _ = plain_loss(policy, read_batch(batch), Settings(kl_coefficient=0.3), reference=model)
    assert_close(steps.gradients[0], gradients_of(policy, loss))


@pytest.mark.parametrize("most", [16, 4096])
def test_no_forward_pass_has_more_tokens_than_its_budget(
    tiny_model: Path, model: LlamaForCausalLM, most: int
) -> None:
    for module, batch in (
        (WorldModelGRPO(model=str(tiny_model), max_tokens_per_micro_batch=most), make_batch(model)),
        (
            WorldModelSFT(model=str(tiny_model), max_tokens_per_micro_batch=most),
            LabelledBatch(0, tuple(Label("x", (5, 6, n), (n, 8, n, 9)) for n in range(40, 50))),
        ),
    ):
        module.configure_model()
        sizes: list[int] = []
        module.policy.model.embed_tokens.register_forward_hook(
            lambda _, inputs, __, sizes=sizes: sizes.append(inputs[0].numel())
        )
        fit(module, [batch])
        assert (len(sizes) > 1) == (most == 16)
        assert max(sizes) <= most


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("versions", "max_staleness", "accepted"),
    [
        ((0, 1, 2), 0, True),
        ((0, 0), 0, False),
        ((0, 0, 1), 1, True),
        ((0, 0, 0), 1, False),
        ((1,), 0, False),  # newer than the policy itself
        ((1,), 5, False),
    ],
)
def test_samples_are_of_this_policy_or_of_one_that_is_not_too_old(
    tiny_model: Path, model: LlamaForCausalLM, versions: tuple[int, ...], max_staleness: int, accepted: bool
) -> None:
    module = make(WorldModelGRPO, model=str(tiny_model), max_staleness=max_staleness)
    batches = [with_version(make_batch(model), version) for version in versions]
    if accepted:
        fit(module, batches)
        assert module.policy_version == len(versions)
    else:
        with pytest.raises(RuntimeError, match=f"t0#0 was sampled by policy version {versions[-1]}"):
            fit(module, batches)
        assert module.policy_version == len(versions) - 1


@pytest.mark.heavy
def test_a_policy_of_adapters_learns_as_its_plain_loss_says(
    tiny_model: Path, model: LlamaForCausalLM
) -> None:
    lora = LoRA(rank=3, alpha=12, target_modules=["q_proj", "down_proj"])
    settings = Settings(temperature=0.8, kl_coefficient=0.3)
    module = make(
        WorldModelGRPO,
        model=str(tiny_model),
        lora=lora,
        num_iterations=2,
        learning_rate=1e-2,
        max_grad_norm=1e9,
        kl_coefficient=0.3,
    )
    module.configure_model()
    layers = {name for name, m in module.policy.named_modules() if hasattr(m, "lora_A")}
    assert {name.rsplit(".", 1)[-1] for name in layers} == set(lora.target_modules)
    layer = module.policy.get_submodule(min(layers))
    assert (layer.r["default"], layer.scaling["default"]) == (3, 12 / 3)
    start = copy.deepcopy(module.policy)
    batch = replace(make_batch(model), temperature=0.8)
    steps, weights = run(module, [batch])
    texts = read_batch(batch)
    with torch.no_grad():
        old = [plain_logprobs(start, text, 0.8) for text in texts]
    for before, found in zip(weights[:-1], steps.gradients, strict=True):
        policy = with_weights(start, before)
        loss, metrics = plain_loss(policy, texts, settings, old, reference=model)
        assert_close(found, gradients_of(policy, loss))
    assert steps.metrics[0]["train/kl"] == pytest.approx(metrics["train/kl"], abs=1e-5)


def test_dropout_of_adapters_is_the_one_asked_for(tiny_model: Path) -> None:
    module = WorldModelSFT(model=str(tiny_model), lora=LoRA(dropout=0.25))
    module.configure_model()
    rates = {m.p for m in module.policy.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_have_the_dtype_asked_for(tiny_model: Path, dtype: str) -> None:
    module = WorldModelSFT(model=str(tiny_model), dtype=dtype, lora=LoRA(rank=2))
    module.configure_model()
    frozen = {p.dtype for p in module.policy.parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, dtype)}


@pytest.mark.parametrize("gradient_checkpointing", ["none", "selective", "full"])
def test_checkpointing_computes_layers_again_and_changes_no_gradient(
    tiny_model: Path, model: LlamaForCausalLM, gradient_checkpointing: Any
) -> None:
    module = make(
        WorldModelGRPO,
        model=str(tiny_model),
        gradient_checkpointing=gradient_checkpointing,
        max_grad_norm=1e9,
    )
    module.configure_model()
    calls: list[int] = []
    module.policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    batch = make_batch(model)
    (found,) = fit(module, [batch]).gradients
    assert len(calls) == (1 if gradient_checkpointing == "none" else 2)
    policy = copy.deepcopy(model)
    assert_close(found, gradients_of(policy, plain_loss(policy, read_batch(batch), Settings())[0]))
