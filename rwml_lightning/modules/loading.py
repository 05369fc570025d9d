"""Load the language model to train."""

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
        gradient_checkpointing: Activations to recompute in the backward pass; see
            :func:`rwml_lightning.functional.checkpointing_arguments`.
        init_from: Weights of an earlier stage: an exported Hugging Face folder, or a Lightning checkpoint with weights
            that replace the weights of ``model``.

    Raises:
        ValueError: ``init_from`` does not exist or has weights of another model, weights are not finite, or the
            architecture cannot be trained on packed sequences.
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
        # All ranks begin with the same adapters, whatever they have drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            policy = add_lora(policy, lora)
    if folder is not None and folder.is_file():
        load_checkpoint_weights(policy, folder)
        check_weights(policy, folder)
    return policy


def _without_dropout(policy: nn.Module) -> None:
    """Set dropout to 0, because log-probabilities in training must agree with those of the sampling policy."""
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # for functional.dropout in OPT and Seed-OSS
                setattr(module, name, 0.0)


def check_weights(policy: nn.Module, source: str | Path) -> None:
    """Raise ValueError with the source of the weights if a weight contains NaN or infinity."""
    # Buffers may contain infinity, for example the bounds of the clipped layers of Gemma 4.
    broken = [
        base_name(name) for name, weight in policy.named_parameters() if not torch.isfinite(weight).all()
    ]
    if broken:
        raise ValueError(f"{source}: {len(broken)} weights hold NaN or infinity, for example {broken[0]}")


def load_checkpoint_weights(policy: nn.Module, checkpoint: Path, assign: bool = False) -> None:
    """Load the weights of a Lightning checkpoint into the policy.

    Args:
        policy: Model to load into.
        checkpoint: Path of the checkpoint.
        assign: Whether to use the tensors of the checkpoint without a copy; they stay on disk until they are read.

    Raises:
        ValueError: The checkpoint has weights of another model or LoRA setting.
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
    """Build the policy of a Lightning checkpoint for reading weights only; they stay on disk until they are read."""
    saved = checkpoint_policy(checkpoint)
    policy: nn.Module = load_skeleton(saved["model"])
    if saved["lora"] is not None:
        policy = wrap(policy, saved["lora"])
    load_checkpoint_weights(policy, checkpoint, assign=True)
    return policy


def check_same_lora(saved: LoRA | None, configured: LoRA | None, checkpoint: str | Path) -> None:
    """Check that the adapters of a checkpoint keep the scale they were trained with.

    Loading the weights checks which layers have adapters, by their names.

    Args:
        saved: LoRA settings of the checkpoint.
        configured: LoRA settings of the config.
        checkpoint: Description of the checkpoint for the error message.

    Raises:
        ValueError: Rank or alpha differ.
    """
    for key in ("rank", "alpha"):
        before, now = getattr(saved, key, None), getattr(configured, key, None)
        if before != now:
            raise ValueError(
                f"{checkpoint} holds the weights of another model or LoRA setting: model.lora.{key} was {before} and is {now}"
            )


def checkpoint_policy(checkpoint: Path) -> dict[str, Any]:
    """Read ``model``, ``dtype`` and ``lora`` of the policy in a Lightning checkpoint, as :func:`load_policy` takes them.

    Raises:
        ValueError: The file is not a complete checkpoint of rwml-lightning.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["policy"]
        lora = LoRA(**saved["lora"]) if saved["lora"] else None
        return {"model": saved["model"], "dtype": saved["dtype"], "lora": lora}
    except (RuntimeError, UnpicklingError, OSError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{checkpoint} is not a complete checkpoint of rwml-lightning") from error
