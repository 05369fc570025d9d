"""Low-rank adapters on the policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters instead of full fine-tuning.

    Args:
        rank: Rank r.
        alpha: Scale; the adapter is multiplied by alpha / r.
        dropout: Dropout before the adapter. Above 0 the trainer's log-probabilities are not the generator's.
        target_modules: Module names, or ``all-linear``.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


def add_lora(policy: Any, lora: LoRA) -> nn.Module:
    """Wrap a model in fresh adapters, which change nothing until they are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(policy, config)


@contextlib.contextmanager
def reference_mode(policy: Any) -> Iterator[None]:
    """Within it a LoRA policy answers as the model it started from: the reference needs no second copy."""
    with policy.disable_adapter():
        yield
