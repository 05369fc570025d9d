"""Sizes of an architecture, counted on a policy without values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from rwml_lightning.functional.packed import decoder
from rwml_lightning.memory.activations import Activations, count_activations, fake_tensors
from rwml_lightning.models import causal_config
from rwml_lightning.modules.adamw import moment_block
from rwml_lightning.modules.adapters import wrap
from rwml_lightning.modules.base import PolicyModule


@dataclass(frozen=True)
class Sizes:
    """Numbers of an architecture that the plan needs.

    Args:
        weights: Bytes of all weights and buffers.
        gradients: Bytes of the gradients of a whole model.
        moments: Bytes of its moments.
        casts: Bytes of the bfloat16 copies that autocast keeps during a step.
        largest_gradient: Bytes of the largest gradient.
        layer: Bytes of the weights of the largest decoder layer.
        outside: Bytes of the weights outside of the layers.
        activations: Activations per token.
        head: Vocabulary, width, and bytes of a number of the output head.
        head_trained: Whether the head has a gradient.
    """

    weights: float
    gradients: float
    moments: float
    casts: float
    largest_gradient: float
    layer: float
    outside: float
    activations: Activations
    head: tuple[int, int, int]
    head_trained: bool


def measure(module: PolicyModule, mixed_precision: bool) -> Sizes:
    """Build the policy of a module without values, and count what it takes. Its weights are not read."""
    from transformers import AutoModelForCausalLM

    config, dtype = causal_config(module.model), getattr(torch, module.dtype_name)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
        policy: nn.Module = lm if module.lora is None else wrap(lm, module.lora)
    with fake_tensors():  # knows autocast, which the meta device does not
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
        activations = count_activations(plain, mixed_precision)
    # An adapter stores its input a second time, in its own dtype, or in that of autocast.
    adapted: list[Any] = [layer for layer in policy.modules() if hasattr(layer, "lora_A")]
    extra = sum(layer.in_features for layer in adapted) * (2 if mixed_precision else 4)
    weights = [*policy.parameters(), *policy.buffers()]
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    low = [p for p in policy.parameters() if mixed_precision and p.ndim > 1 and p.dtype == torch.float32]
    head = lm.get_output_embeddings().weight
    layers: Any = decoder(lm).layers
    in_layers = [_bytes(list(layer.parameters())) for layer in layers]
    return Sizes(
        weights=_bytes(weights),
        gradients=_bytes(trained),
        moments=sum(moment_bytes(parameter, module.optimizer.moments) for parameter in trained),
        casts=sum(2.0 * matrix.numel() for matrix in low),
        largest_gradient=max(parameter.numel() * parameter.element_size() for parameter in trained),
        layer=max(in_layers),
        outside=_bytes(weights) - sum(in_layers),
        activations=replace(
            activations,
            stored=activations.stored + extra,
            largest_layer=activations.largest_layer + extra / len(layers),
        ),
        head=(head.shape[0], head.shape[1], 2 if mixed_precision else head.element_size()),
        head_trained=head.requires_grad,
    )


def moment_bytes(parameter: torch.Tensor, moments: Literal["float32", "int8"]) -> float:
    """Return the bytes of the two moments of a parameter."""
    block = moment_block(parameter, moments)
    return 2 * parameter.numel() * (4 if block is None else 1 + 4 / block)


def head_bytes(sizes: Sizes, chunk: int, num_tokens: int) -> float:
    """Return the bytes of the output head in its backward pass: a chunk of logits, and the gradient in float32."""
    vocabulary, width, number = sizes.head
    # Logits and their gradient in float32, and the one that is the factor of a matrix product.
    logits = min(chunk, num_tokens) * vocabulary * (4 + 4 + number)
    gradient = vocabulary * width * (4 + number) if sizes.head_trained else 0
    return logits + gradient + 2 * num_tokens * width * number


@cache
def num_parameters(model: str) -> int:
    """Return the number of parameters of a model, by name."""
    from transformers import AutoModelForCausalLM

    with fake_tensors():
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(causal_config(model)).parameters())


def _bytes(tensors: Sequence[torch.Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
