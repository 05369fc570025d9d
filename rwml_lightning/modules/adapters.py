"""Low-rank adapters (LoRA) for the policy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rwml_lightning.modules.scoring import score_text
from rwml_lightning.weights import adapted_layers, base_model, base_name, model_tensors


@dataclass(frozen=True)
class LoRA:
    """Settings of low-rank adapters, which replace full fine-tuning.

    Args:
        rank: Rank r of the adapters.
        alpha: Scale; the output of an adapter is multiplied by alpha / r.
        dropout: Dropout probability before the adapter. Above 0, the log-probabilities of trainer and generator differ.
        target_modules: Names of the modules that get adapters, or ``all-linear``.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


def add_lora(policy: Any, lora: LoRA) -> nn.Module:
    """Add new adapters to a model. They have no effect until they are trained.

    Raises:
        ValueError: The adapters cannot be merged into the weights; see :func:`verify_merging`.
    """
    adapted = wrap(policy, lora)
    verify_merging(adapted)
    return adapted


def wrap(policy: Any, lora: LoRA) -> nn.Module:
    """Add new adapters to a model without a merge check, for example on the meta device, where nothing is computed."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=_routers(policy) if lora.target_modules == "all-linear" else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(policy, config)


@torch.no_grad()
def _routers(policy: nn.Module) -> list[str]:
    """Return the names of linear subclasses that return more than a tensor: the routers of Llama 4 and Phi-3.5-MoE."""
    derived = {
        name: module
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear
    }
    return [
        name
        for name, module in derived.items()
        if not isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)
    ]


def verify_merging(policy: nn.Module) -> None:
    """Check that a policy with adapters computes the same as the model with merged adapters.

    The two differ, for example, if embeddings that are tied to the output head have adapters. Generators and exports
    would then use another model than the trained one. The check gives random adapters to one layer of each kind, and
    resets them afterwards. The adapters of the policy must be new.

    Raises:
        ValueError: The merged model differs. The message names the kinds of layers.
    """
    kinds = _one_of_each_kind(policy)
    if _merges(policy, kinds.values()):
        return
    unmergeable = [kind for kind, layer in kinds.items() if not _merges(policy, [layer])]
    raise ValueError(
        f"adapters on {', '.join(unmergeable or kinds)} cannot be merged into the weights, so generators and exports would "
        "differ from the policy: remove these modules from model.lora.target_modules"
    )


def _one_of_each_kind(policy: nn.Module) -> dict[str, Any]:
    """Return the first layer with adapters of each kind; layers of one kind have the same name apart from their number."""
    kinds: dict[str, Any] = {}
    for name, layer in adapted_layers(policy).items():
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", base_name(name)), layer)
    return kinds


def _merges(policy: nn.Module, layers: Iterable[nn.Module]) -> bool:
    zero_parameters = [
        parameter
        for layer in layers
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.") and not parameter.any()
    ]
    generator = torch.Generator().manual_seed(0)
    vocabulary = base_model(policy).config.get_text_config().vocab_size
    text = [(37 * i + 11) % vocabulary for i in range(16)]
    try:
        with torch.no_grad():
            for parameter in zero_parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        names = {base_name(name): name for name in policy.state_dict()}
        state = policy.state_dict()
        merged = {
            names[name]: tensor
            for name, tensor in model_tensors(policy)
            if not torch.equal(tensor, state[names[name]])
        }
        adapted = score_text(policy, text)
        with policy.disable_adapter():  # type: ignore[operator]
            plain, after_merge = score_text(policy, text), score_text(policy, text, merged)
    finally:
        with torch.no_grad():
            for parameter in zero_parameters:
                parameter.zero_()
    error, effect = (adapted - after_merge).abs().mean(), (adapted - plain).abs().mean()
    # Low precision rounds the merged weights. The error of a wrong merge is about as large as the adapters' effect.
    exact = next(policy.parameters()).dtype == torch.float32
    return bool(error <= (1e-3 if exact else 0.5 * effect))


@contextlib.contextmanager
def trial_adapters(policy: nn.Module) -> Iterator[None]:
    """Give one layer of each kind random adapters for a block, because new adapters have no effect."""
    generator = torch.Generator().manual_seed(0)
    tried = {id(p) for layer in _one_of_each_kind(policy).values() for p in layer.parameters()}
    with torch.inference_mode(False), torch.no_grad():  # parameters cannot hold tensors of the inference mode
        values = {
            name: value
            for name, value in adapter_values(policy).items()
            if ".lora_B." in name and id(policy.get_parameter(name)) in tried
        }
        for value in values.values():
            own = value.to_local() if isinstance(value, DTensor) else value
            own.copy_(torch.randn(own.shape, generator=generator) * 0.1)
    with adapters_at(policy, values):
        yield


def adapter_values(policy: nn.Module) -> dict[str, Tensor]:
    """Copy the current values of the adapters, by parameter name."""
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def adapters_at(policy: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Set the adapters of the policy to other values for a block, so that the reference policy needs no second model.

    Args:
        policy: Model with adapters. An autograd graph that was recorded before stays valid.
        values: Values from :func:`adapter_values`.
    """
    parameters = dict(policy.named_parameters())
    now = {name: parameters[name].detach() for name in values}
    now = {name: own.clone() if isinstance(own, DTensor) else own for name, own in now.items()}
    was_training = policy.training
    policy.eval()  # no dropout before an adapter
    try:
        _set(parameters, values)
        yield
    finally:
        _set(parameters, now)
        policy.train(was_training)


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if isinstance(value, DTensor):
            parameters[name].copy_(value)  # FSDP gathers from this memory, anew for each pass
        else:
            parameters[name].data = value
