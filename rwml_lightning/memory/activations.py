"""Activations of an architecture, counted on tensors without values: what a pass stores for its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface

from rwml_lightning.functional.checkpointing import Checkpointing
from rwml_lightning.functional.packed import causal_lm, decoder

_ATTENTION = "counted_without_values"
_TOKENS = 997  # a prime number, which is the size of nothing else


@dataclass(frozen=True)
class Activations:
    """Bytes per token of a forward pass of the decoder.

    Args:
        inputs: Inputs of all layers.
        products: Outputs of the matrix products and of the attention of all layers.
        stored: Everything that all layers store.
        largest_layer: Everything that the layer with most activations stores.
        outside: Stored outside of the layers.
        widest: Largest tensor of a layer.
        num_layers: Number of layers.
    """

    inputs: float
    products: float
    stored: float
    largest_layer: float
    outside: float
    widest: float
    num_layers: int

    def peak(self, num_tokens: int, checkpointing: Checkpointing) -> tuple[float, float]:
        """Return the bytes that are stored at the end of the forward pass, and those in the backward pass of a layer besides.

        Args:
            num_tokens: Number of tokens of the pass.
            checkpointing: Activations that are recomputed.
        """
        kept = {
            "none": self.stored,
            "selective": self.inputs + self.products,
            "full": self.inputs,
        }[checkpointing]
        recomputed = {
            "none": 0.0,
            "selective": self.largest_layer - self.products / self.num_layers,
            "full": self.largest_layer,
        }[checkpointing]
        # Gradients of about three of the largest tensors exist at the same time: of a product and of its two factors.
        return num_tokens * (kept + self.outside), num_tokens * (recomputed + 3 * self.widest)


def count_activations(model: nn.Module, mixed_precision: bool) -> Activations:
    """Count the activations of a model without adapters, under FakeTensorMode.

    Args:
        model: Model with fake tensors, as :func:`fake_tensors` makes them.
        mixed_precision: Whether matrix products are in bfloat16 by autocast.
    """
    lm = causal_lm(model)
    lm.set_attn_implementation(_ATTENTION)
    lm.enable_input_require_grads()  # as gradient checkpointing does
    counter = _Counter(model)
    layers: Any = decoder(lm).layers
    marks: list[tuple[float, float]] = []
    inputs: list[float] = []

    def before(layer: nn.Module, arguments: Any, keywords: Any) -> None:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        inputs.append(hidden.numel() * hidden.element_size())
        marks.append((counter.stored, counter.products))

    def after(layer: nn.Module, arguments: Any, output: Any) -> None:
        marks.append((counter.stored, counter.products))

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    ids = torch.zeros(1, _TOKENS, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16) if mixed_precision else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(counter.store, lambda tensor: tensor), autocast, counter:
        decoder(lm)(
            input_ids=ids, attention_mask=torch.zeros(1, 1, 1, _TOKENS, dtype=torch.long), position_ids=ids, use_cache=False
        )  # fmt: skip
    for handle in handles:
        handle.remove()
    stored = [end[0] - start[0] for start, end in zip(marks[::2], marks[1::2], strict=True)]
    products = [end[1] - start[1] for start, end in zip(marks[::2], marks[1::2], strict=True)]
    return Activations(
        sum(inputs) / _TOKENS,
        sum(products) / _TOKENS,
        sum(stored) / _TOKENS,
        max(stored) / _TOKENS,
        (counter.stored - sum(stored)) / _TOKENS,
        counter.widest / _TOKENS,
        len(stored),
    )


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make all tensors of a block without memory for their values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class _Counter(TorchDispatchMode):
    """Counts bytes of tensors with one row per token: those that autograd stores, and outputs of matrix products."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stored = self.products = self.widest = 0.0
        self._seen: dict[int, Tensor] = {}

    def store(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _TOKENS in tensor.shape and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor  # keeps the storage, so that its address stays its own
            self.stored += storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and _TOKENS in result.shape:
            size = result.numel() * result.element_size()
            self.widest = max(self.widest, size)
            if (
                func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
                or func is torch.ops.aten.empty_like.default
            ):
                self.products += size
        return result


class _Attention(torch.autograd.Function):
    """Stores what attention kernels store: queries, keys, values, outputs, and a number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query[..., 0].float().clone())
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("activations are counted without a backward pass")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, lambda *args, **kwargs: None)
