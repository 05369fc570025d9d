"""Iterate over the tensors of a model, as generators, exports and comparisons read them."""

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
    """Yield the name and value of every parameter and persistent buffer.

    Adapters are merged, shards are gathered, and tied tensors are yielded once. The model does not change: adapters
    are merged into a copy of their layer, by PEFT's rule for that type of layer. Merging in place and unmerging would
    add rounding at every step.

    Args:
        model: Hugging Face model, plain or wrapped by PEFT.

    Returns:
        Names as in the ``state_dict`` without adapters, and values. :func:`checkpoint_tensors` converts them to the
        names in checkpoint files.
    """
    adapted = adapted_layers(model)
    state = _unique_state(model)
    for owner, names in itertools.groupby(state, key=lambda name: _adapted_layer(name, adapted)):
        if owner is None:
            tensors = [(name, state[name]) for name in names]
        else:
            merged = _merge(adapted[owner]).state_dict()
            tensors = [(f"{owner}.{name}", tensor) for name, tensor in merged.items()]
        for name, tensor in tensors:
            yield base_name(name), _whole(tensor)


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`model_tensors` yields, but without the effect of the adapters."""
    for name, tensor in _base_state(model):
        yield base_name(name), _whole(tensor)


def base_versions(model: nn.Module) -> list[tuple[int, int]]:
    """Return the identity of every base tensor and how often it was changed in place, to see that the base is the same."""
    return [(id(tensor), tensor._version) for _, tensor in _base_state(model)]


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the adapters under the names that PEFT gives them in files."""
    base = {name for name, _ in _base_state(model)}
    for name, tensor in _unique_state(model).items():
        if name not in base:
            yield name.replace(".default.", "."), _whole(tensor)


def checkpoint_tensors(
    model: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Convert the tensors of a model to the names and shapes of its checkpoint, one layer at a time.

    The two differ where transformers fuses tensors on loading that the files store separately, such as the experts of
    a mixture of experts.

    Args:
        model: Model of the tensors, plain or wrapped by PEFT; it may be on the meta device.
        named_tensors: Names and values from :func:`model_tensors`.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(model)
    for layer in by_layer(named_tensors):
        yield from revert_weight_conversion(base, dict(layer)).items()


def cast_weights(
    model: nn.Module, named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Cast parameters to the dtype of a generator's copy, so that half as many bytes travel from float32 to bfloat16.

    Buffers, parameters that the architecture always keeps in float32, and parameters that are not wider stay as they are.

    Args:
        model: Model of the tensors, plain or wrapped by PEFT.
        named_tensors: Names and values from :func:`model_tensors`.
        dtype: Dtype of the copy.
    """
    base = base_model(model)
    parameters = {base_name(name) for name, _ in base.named_parameters()}
    precise = tuple(getattr(base, "_keep_in_fp32_modules_strict", None) or ())
    for name, tensor in named_tensors:
        wide = tensor.is_floating_point() and tensor.element_size() > dtype.itemsize
        keeps = name not in parameters or any(part in name.split(".") for part in precise)
        yield name, tensor if keeps or not wide else tensor.to(dtype)


def by_layer(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Group consecutive tensors of the same layer. Consecutive tensors outside the layers form a group, too."""

    def layer_of(named: tuple[str, Tensor]) -> str:
        layer = _LAYER.match(named[0])
        return layer.group() if layer else ""

    for _, layer in itertools.groupby(named_tensors, key=layer_of):
        yield list(layer)


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model without the PEFT wrapper, if there is one. Its layers keep their adapters."""
    return cast(
        "PreTrainedModel", cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    )


def base_name(name: str) -> str:
    """Remove the prefix and the ``.base_layer`` part that PEFT adds to the name of a tensor."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the ``state_dict``; tied tensors have their first name alone."""
    state = model.state_dict(keep_vars=True)  # the same tensor objects, so that tied tensors have the same id
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}


def _base_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    adapted = adapted_layers(model)
    for name, tensor in _unique_state(model).items():
        owners = [owner for owner in _parents(name) if owner in adapted]  # wrappers can be nested
        if all(name.startswith(f"{owner}.base_layer.") for owner in owners):
            yield name, tensor


def _whole(tensor: Tensor) -> Tensor:
    value = tensor.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with adapters, by their names in the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: layer
        for name, layer in cast("Iterable[tuple[str, Any]]", model.named_modules())
        if isinstance(layer, BaseTunerLayer)
    }


def _adapted_layer(name: str, adapted: Container[str]) -> str | None:
    """Return the name of the outermost adapted layer that contains the tensor."""
    return next((parent for parent in _parents(name) if parent in adapted), None)


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


@torch.no_grad()
def _merge(layer: Any) -> nn.Module:
    """Return a copy of the layer with its adapters merged into the weights."""
    merged = copy.deepcopy(layer)
    # Nested wrappers, for example of experts, have a separate method.
    if hasattr(merged, "unload_and_optionally_merge_module"):
        return merged.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    merged.merge()
    return merged.get_base_layer()
