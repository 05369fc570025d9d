"""Loading the language model under training."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import nn

from rwml_lightning.functional import (
    Checkpointing,
    checkpointing_arguments,
    use_tree_attention,
    verify_packing,
)
from rwml_lightning.models import load_causal_lm, load_skeleton
from rwml_lightning.modules.adapters import LoRA, add_lora, wrap
from rwml_lightning.weights import base_name

Dtype = Literal["float32", "bfloat16", "float16"]


def load_policy(
    model: str,
    dtype: Dtype = "float32",
    lora: LoRA | None = None,
    gradient_checkpointing: Checkpointing = "none",
    init_from: str | None = None,
) -> nn.Module:
    """Load the policy.

    Args:
        model: Folder, hub id or ``package:`` name of a Hugging Face causal model.
        dtype: Dtype of the weights.
        lora: Adapters to train; ``None`` trains every weight.
        gradient_checkpointing: What the backward pass computes again; see
            :func:`rwml_lightning.functional.checkpointing_arguments`.
        init_from: Weights of an earlier stage: an exported Hugging Face folder, or a Lightning checkpoint whose
            weights then replace those of ``model``.

    Raises:
        ValueError: ``init_from`` does not exist or holds other weights than this model's, weights are not finite, or the model's architecture
            can't be trained on packed sequences.
    """
    folder = Path(init_from) if init_from else None
    if folder is not None and not folder.exists():
        raise ValueError(f"model.init_from names {init_from}, which does not exist")
    if folder is not None and folder.is_file():
        check_same_lora(checkpoint_policy(folder)["lora"], lora, folder)
    source = str(folder) if folder is not None and folder.is_dir() else model
    policy: Any = load_causal_lm(source, dtype=getattr(torch, dtype))
    check_weights(policy, source)
    policy.train()
    _without_dropout(policy)
    use_tree_attention(policy)
    verify_packing(policy)
    if gradient_checkpointing != "none":
        policy.gradient_checkpointing_enable(checkpointing_arguments(gradient_checkpointing))
        policy.enable_input_require_grads()
    if lora is not None:
        policy = add_lora(policy, lora)
    if folder is not None and folder.is_file():
        load_checkpoint_weights(policy, folder)
        check_weights(policy, folder)
    return policy


def _without_dropout(policy: nn.Module) -> None:
    """Take dropout away: the log-probabilities must be those of the policy that sampled."""
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # for functional.dropout, as in OPT and Seed-OSS
                setattr(module, name, 0.0)


def check_weights(policy: nn.Module, source: str | Path) -> None:
    """Raise ValueError, naming where the weights come from, when one of them holds NaN or infinity."""
    # Buffers may hold infinity, such as the bounds of Gemma 4's clipped layers.
    broken = [
        base_name(name) for name, weight in policy.named_parameters() if not torch.isfinite(weight).all()
    ]
    if broken:
        raise ValueError(f"{source}: {len(broken)} weights hold NaN or infinity, for example {broken[0]}")


def load_checkpoint_weights(policy: nn.Module, checkpoint: Path, assign: bool = False) -> None:
    """Copy the policy's weights out of a Lightning checkpoint.

    Args:
        policy: Gets the weights.
        checkpoint: Has them.
        assign: Take the checkpoint's tensors themselves, which stay on disk until they are read.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    weights = {
        name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")
    }
    missing, unexpected = policy.load_state_dict(weights, strict=False, assign=assign)
    tied = set(getattr(policy, "all_tied_weights_keys", None) or {})
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        example = (missing or unexpected)[0]
        raise ValueError(
            f"{checkpoint} holds the weights of another model or LoRA setting: {example} does not match"
        )


def checkpoint_skeleton(checkpoint: Path) -> nn.Module:
    """The policy in a Lightning checkpoint with weights that stay on disk until they are read; it computes nothing."""
    saved = checkpoint_policy(checkpoint)
    policy: nn.Module = load_skeleton(saved["model"])
    if saved["lora"] is not None:
        policy = wrap(policy, saved["lora"])
    load_checkpoint_weights(policy, checkpoint, assign=True)
    return policy


def check_same_lora(saved: LoRA | None, own: LoRA | None, checkpoint: str | Path) -> None:
    """Refuse adapters that would be scaled otherwise than they were trained; which layers have some, their names tell.

    Args:
        saved: Setting that the checkpoint was trained with.
        own: Setting of the config.
        checkpoint: Named in the error.

    Raises:
        ValueError: Rank or alpha differ.
    """
    for key in ("rank", "alpha"):
        there, here = getattr(saved, key, None), getattr(own, key, None)
        if there != here:
            raise ValueError(
                f"{checkpoint} holds the weights of another model or LoRA setting: model.lora.{key} was {there} and is {here}"
            )


def checkpoint_policy(checkpoint: Path) -> dict[str, Any]:
    """``model``, ``dtype`` and ``lora`` of the policy in a Lightning checkpoint, as :func:`load_policy` takes them.

    Raises:
        ValueError: It is no checkpoint of ours, or not a whole one.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["policy"]
        lora = LoRA(**saved["lora"]) if saved["lora"] else None
        return {"model": saved["model"], "dtype": saved["dtype"], "lora": lora}
    except (RuntimeError, UnpicklingError, OSError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint of rwml-lightning, or not a whole one") from error
