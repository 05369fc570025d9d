"""Which activations a forward pass keeps for the backward pass."""

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
    """Arguments of ``torch.utils.checkpoint`` for one layer.

    ``full`` keeps a layer's input and computes all else again, a third more work. ``selective`` keeps what matrix
    products and attention gave as well, and computes norms, rotations and activation functions again: nearly as fast
    as keeping everything, for about a third of its memory.

    Raises:
        ValueError: ``none``, which is no checkpointing.
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
