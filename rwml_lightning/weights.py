"""A model's tensors, one at a time: what generators, exports and comparisons take for the model."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r".*?\.\d+\.")


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter and persistent buffer: adapters merged, shards gathered, tied ones once.

    The model is left as it is. Adapters are merged on a copy of their layer, by PEFT's own rule for that kind of layer;
    merging in place and undoing it would add rounding at every step.

    Args:
        model: Hugging Face model, plain or wrapped by PEFT.

    Returns:
        Names are those of the ``state_dict`` without adapters. :func:`checkpoint_tensors` spells them as files do.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    state = model.state_dict(
        keep_vars=True
    )  # the tensors themselves, so that tied ones are known by identity
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    once = [name for name, tensor in state.items() if first[id(tensor)] == name]
    for owner, names in itertools.groupby(once, key=lambda name: _adapted_layer(name, adapted)):
        if owner is None:
            tensors = [(name, state[name]) for name in names]
        else:
            merged = _merge(adapted[owner]).state_dict()
            tensors = [(f"{owner}.{name}", tensor) for name, tensor in merged.items()]
        for name, tensor in tensors:
            value = tensor.detach()
            yield base_name(name), value.full_tensor() if isinstance(value, DTensor) else value


def checkpoint_tensors(
    model: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Spell a model's tensors as its checkpoint does, a layer at a time.

    The two differ where transformers fuses on loading what files keep apart, such as the experts of a mixture.

    Args:
        model: The model that they belong to, plain or wrapped by PEFT; it may lie on the meta device.
        named_tensors: What :func:`model_tensors` gives.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(model)
    for layer in by_layer(named_tensors):
        yield from revert_weight_conversion(base, dict(layer)).items()


def by_layer(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Neighbouring tensors of one layer together, and those outside the layers."""

    def layer_of(named: tuple[str, Tensor]) -> str:
        layer = _LAYER.match(named[0])
        return layer.group() if layer else ""

    for _, layer in itertools.groupby(named_tensors, key=layer_of):
        yield list(layer)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside what PEFT may have put around it; adapters stay in place."""
    return cast(
        "PreTrainedModel", cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    )


def base_name(name: str) -> str:
    """A tensor's name without what PEFT puts before it and into it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def _adapted_layer(name: str, adapted: Container[str]) -> str | None:
    """Outermost adapted layer that holds the tensor."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in adapted), None)


@torch.no_grad()
def _merge(layer: Any) -> nn.Module:
    """The layer without its adapters, which are merged into a copy of its weights."""
    own = copy.deepcopy(layer)
    if hasattr(own, "unload_and_optionally_merge_module"):  # wrappers that nest, such as those of experts
        return own.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    own.merge()
    return own.get_base_layer()
