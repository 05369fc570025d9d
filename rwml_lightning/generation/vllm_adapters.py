"""Adapters of a policy that vLLM's engine computes with beside the base weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rwml_lightning.generation.base import UnsupportedAdaptersError
from rwml_lightning.weights import adapted_layers, base_model, base_name

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM reserves for the rank of adapters."""


@dataclass(frozen=True)
class Adapters:
    """Shape of a policy's adapters, for which the engine reserves memory when it starts.

    Args:
        rank: Rank of the adapters.
        alpha: Scale; the output of an adapter is multiplied by alpha / rank.
        modules: Last parts of the names of the layers with adapters.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's engine."""
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": min(size for size in MAX_RANKS if size >= self.rank),
            "lora_target_modules": list(self.modules),
        }

    @property
    def config(self) -> dict[str, Any]:
        """Content of PEFT's ``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.modules),
        }


def adapters_of(policy: nn.Module) -> Adapters | None:
    """Return the shape of the adapters of a policy; ``None`` if it has none.

    Raises:
        UnsupportedAdaptersError: vLLM cannot compute with the adapters. The message is the reason.
    """
    from peft.tuners.lora import Linear

    layers = adapted_layers(policy)
    if not layers:
        return None
    if any("experts" in name.split(".") for name, _ in policy.named_parameters()):
        raise UnsupportedAdaptersError("the model has experts")
    head = getattr(base_model(policy), "get_output_embeddings", lambda: None)()
    shapes = set()
    for name, layer in layers.items():
        if not isinstance(layer, Linear) or not isinstance(layer.get_base_layer(), nn.Linear):
            raise UnsupportedAdaptersError(f"{base_name(name)} is not a linear layer")
        if layer is head:
            raise UnsupportedAdaptersError(f"{base_name(name)} is the output head")
        shapes.add((layer.r["default"], layer.lora_alpha["default"]))
    if len(shapes) > 1:
        raise UnsupportedAdaptersError("their ranks or scales differ")
    ((rank, alpha),) = shapes
    if rank > MAX_RANKS[-1]:
        raise UnsupportedAdaptersError(f"their rank is {rank}, and vLLM's limit is {MAX_RANKS[-1]}")
    return Adapters(rank, alpha, tuple(sorted({name.rpartition(".")[2] for name in layers})))


def check_dtype(dtype: str) -> None:
    """Check that vLLM's kernels for adapters support the dtype of the engine.

    Raises:
        UnsupportedAdaptersError: The engine would compute in float32 on a GPU.
    """
    if dtype == "float32" and torch.cuda.is_available():
        raise UnsupportedAdaptersError("vLLM's kernels for adapters need bfloat16 or float16 on a GPU")
