"""Activation checkpointing: which activations the forward pass stores for the backward pass."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]

_COSTLY = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def checkpointing_arguments(checkpointing: Checkpointing) -> dict[str, Any]:
    """Return the arguments of ``torch.utils.checkpoint`` for one layer.

    ``full`` stores only the input of a layer and recomputes everything else, which costs a third more compute.
    ``selective`` also stores the outputs of matrix products and attention, and recomputes norms, rotary embeddings and
    activation functions: nearly as fast as storing all activations, with about a third of the memory.

    Raises:
        ValueError: If ``checkpointing`` is ``none``.
    """
    if checkpointing == "full":
        return {"use_reentrant": False}
    if checkpointing == "selective":
        return {"use_reentrant": False, "context_fn": _selective_contexts}
    raise ValueError(f"checkpointing must be 'selective' or 'full', not {checkpointing!r}")


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_keep_costly)


def _keep_costly(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
