"""Which layers get adapters, what is refused, what a policy answers with other adapters, and how a text is scored."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rwml_lightning.modules import LoRA, WorldModelSFT, adapters
from rwml_lightning.modules.adapters import adapter_values, adapters_at, trial_adapters, verify_merging, wrap
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.modules.scoring import score_text
from support.plain_grpo import Text, plain_logprobs

TEXT = (5, 9, 40, 41, 7, 60)
DROPPING = LoRA(rank=4, alpha=8, dropout=0.5)


class Router(nn.Linear):
    """As in Llama 4: scores and choices."""

    def forward(self, hidden: torch.Tensor) -> Any:
        scores = super().forward(hidden)
        return scores, scores.argmax(-1)


class Scaled(nn.Linear):
    """A linear layer of another class."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


def shake(policy: nn.Module, seed: int) -> None:
    """Give every adapter random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def plain_score(model: nn.Module) -> torch.Tensor:
    """Log-probabilities of the text by a copy in evaluation mode."""
    with torch.no_grad():
        return plain_logprobs(copy.deepcopy(model).eval(), Text(TEXT[:1], TEXT[1:]))


def add_layers(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with a router and a scaled layer in each block, which nothing calls."""
    model = copy.deepcopy(model)
    for block in model.model.layers:
        block.mlp.router, block.mlp.scaled = Router(32, 4), Scaled(32, 4)
    return model


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("all-linear", {"scaled", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"}),
     (["router", "q_proj"], {"router", "q_proj"})],
)  # fmt: skip
def test_all_linear_layers_but_routers_get_adapters(
    model: LlamaForCausalLM, targets: Any, expected: set[str]
) -> None:
    policy = wrap(add_layers(model), LoRA(rank=2, target_modules=targets))
    adapted = {name.rsplit(".", 1)[-1] for name, layer in policy.named_modules() if hasattr(layer, "lora_A")}
    assert adapted == expected


@pytest.mark.heavy
def test_layers_that_do_not_merge_are_named_once_by_kind(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(tiny_model), lora=LoRA(rank=2, target_modules=["q_proj", "down_proj"]))
    layers = dict(policy.named_modules())
    broken = layers["base_model.model.model.layers.0.self_attn.q_proj"]

    def merges(policy: nn.Module, tried: Iterable[nn.Module]) -> bool:
        return broken not in list(tried)

    monkeypatch.setattr(adapters, "_merges", merges)
    with pytest.raises(
        ValueError, match=r"^adapters on model\.layers\.\*\.self_attn\.q_proj cannot be merged"
    ):
        verify_merging(policy)
    # Only together: all are named.
    monkeypatch.setattr(adapters, "_merges", lambda policy, tried: len(list(tried)) < 2)
    both = r"^adapters on model\.layers\.\*\.self_attn\.q_proj, model\.layers\.\*\.mlp\.down_proj cannot be"
    with pytest.raises(ValueError, match=both):
        verify_merging(policy)


class Lost(nn.Module):
    """Stands for a layer whose adapters act beside what merging reaches."""

    def __init__(self, layer: nn.Module, shift: float) -> None:
        super().__init__()
        self.layer, self.shift = layer, shift

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        acts = any(p.any() for name, p in self.layer.named_parameters() if "lora_B" in name)
        ramp = torch.linspace(0, 1, logits.shape[-1])
        return logits + self.shift * ramp if acts and not self.layer.disable_adapters else logits


@pytest.mark.parametrize(("shift", "merges"), [(1e-4, True), (0.02, False), (1.0, False)])
def test_a_small_error_of_merging_is_found(tiny_model: Path, shift: float, merges: bool) -> None:
    policy: Any = load_policy(str(tiny_model), lora=LoRA(rank=2, target_modules=["q_proj"]))
    lost = Lost(policy.get_submodule("base_model.model.model.layers.0.self_attn.q_proj"), shift)
    policy.get_base_model().lm_head.register_forward_hook(lambda _, __, logits: lost(logits))
    if merges:
        verify_merging(policy)
    else:
        with pytest.raises(ValueError, match=r"model\.layers\.\*\.self_attn\.q_proj cannot be merged"):
            verify_merging(policy)
    assert not any(p.any() for name, p in policy.named_parameters() if "lora_B" in name)


def test_only_adapters_get_random_values(model: LlamaForCausalLM) -> None:
    """Biases of the model are all 0 too, and stay so."""
    torch.manual_seed(0)
    policy: Any = wrap(
        LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "attention_bias": True})),
        LoRA(rank=2, target_modules=["q_proj", "o_proj"]),
    )
    layer = policy.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    seen: list[tuple[bool, bool]] = []
    layer.register_forward_hook(
        lambda *_: seen.append((bool(layer.lora_B["default"].weight.any()), bool(layer.bias.any())))
    )
    verify_merging(policy)
    assert seen == [(True, False)] * 3
    assert not layer.lora_B["default"].weight.any()


def test_within_it_a_policy_answers_with_other_adapters(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), lora=DROPPING)
    shake(policy, 1)
    start, values = plain_score(policy), adapter_values(policy)
    assert values.keys() == {name for name, _ in policy.named_parameters() if "lora_" in name}
    shake(policy, 2)
    now, own = plain_score(policy), adapter_values(policy)
    assert (start - now).abs().max() > 0.01
    frozen = [p for p in policy.parameters() if p.requires_grad]
    torch.manual_seed(0)
    loss = policy(input_ids=torch.tensor([TEXT])).logits.square().mean()
    expected = torch.autograd.grad(loss, frozen, retain_graph=True)
    with adapters_at(policy, values):
        assert not policy.training
        with torch.no_grad():
            torch.testing.assert_close(plain_logprobs(policy, Text(TEXT[:1], TEXT[1:])), start)
    assert policy.training
    # What was computed before has the gradient that it would have had.
    for found, wanted in zip(torch.autograd.grad(loss, frozen), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(KeyError), adapters_at(policy.eval(), values):
        raise KeyError
    assert not policy.training
    assert all(torch.equal(value, own[name]) for name, value in adapter_values(policy).items())


@pytest.mark.parametrize("inference", [True, False])
def test_a_trial_gives_one_layer_of_each_kind_an_effect(tiny_model: Path, inference: bool) -> None:
    policy = load_policy(str(tiny_model), lora=DROPPING)
    before, plain = adapter_values(policy), plain_score(policy)
    with torch.inference_mode(inference):
        with trial_adapters(policy):
            during, effect = adapter_values(policy), (score_text(policy, TEXT) - plain).abs().mean()
        after = adapter_values(policy)
    assert effect > 0.05
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    changed = {name for name, value in during.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_B." in name and ".layers.0." in name}
    assert all(0.05 < during[name].std() < 0.15 for name in changed)
    assert len({float(during[name].flatten()[0]) for name in changed}) == len(changed)
    score_text(policy, TEXT)
    policy(input_ids=torch.tensor([TEXT])).logits.sum().backward()  # the parameters can still be trained
    assert policy.training


@pytest.mark.parametrize("training", [True, False])
def test_a_score_is_of_every_token_but_the_first_without_dropout(tiny_model: Path, training: bool) -> None:
    module = WorldModelSFT(model=str(tiny_model), lora=DROPPING)
    module.configure_model()
    shake(module.policy, 1)
    module.policy.train(training)
    assert module.score(TEXT) == pytest.approx(plain_score(module.policy).tolist(), abs=1e-5)
    assert len(module.score(TEXT)) == len(TEXT) - 1
    assert module.policy.training == training


def test_a_score_with_other_tensors_leaves_the_model_as_it_is(model: LlamaForCausalLM) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)  # tied to the head
    before = plain_score(model)
    tensors = {"model.embed_tokens.weight": other.model.embed_tokens.weight}
    torch.testing.assert_close(score_text(model, TEXT, tensors), plain_score(other))
    assert (plain_score(other) - before).abs().max() > 0.01
    assert torch.equal(plain_score(model), before)


def test_a_generator_gets_tensors_with_the_adapters_merged(tiny_model: Path) -> None:
    module = WorldModelSFT(model=str(tiny_model), lora=LoRA(rank=4, alpha=8))
    module.configure_model()
    shake(module.policy, 3)
    merged = copy.deepcopy(module.policy).merge_and_unload()  # type: ignore[operator]
    tensors = dict(module.generator_tensors())
    assert tensors.keys() == dict(merged.named_parameters()).keys()
    for name, value in merged.named_parameters():
        torch.testing.assert_close(tensors[name], value.detach())


def test_fresh_adapters_follow_from_the_seed_whatever_was_drawn_before(tiny_model: Path) -> None:
    """A rank that has drawn other numbers, as in a warm-up, must begin with the same adapters."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(5)
        first = adapter_values(load_policy(str(tiny_model), lora=DROPPING))
        drawn = torch.rand(7)
        again = adapter_values(load_policy(str(tiny_model), lora=DROPPING))
        torch.manual_seed(5)
        torch.testing.assert_close(torch.rand(7), drawn)  # loading draws nothing from the run's own generator
        torch.manual_seed(6)
        other = adapter_values(load_policy(str(tiny_model), lora=DROPPING))
    finally:
        torch.set_rng_state(state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
