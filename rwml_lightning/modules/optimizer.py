"""AdamW and its learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rwml_lightning.modules.adamw import LowPrecisionAdamW, Moments
from rwml_lightning.modules.resuming import LearningRate, keep_settings


@dataclass(frozen=True)
class Optimizer:
    """Settings of AdamW and its learning rate schedule.

    Args:
        learning_rate: Peak learning rate.
        schedule: Schedule after the warm-up: ``constant``, or a ``linear`` or ``cosine`` decay to 0 at the last step.
        warmup_steps: Number of linear warm-up steps.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Maximum gradient norm; larger gradients are clipped to it.
        moments: Numbers of the two moments: ``float32``, or ``int8``, 8 bits each and a scale per block of at most 256.
        stochastic_rounding: Whether weights in bfloat16 are rounded at random, so that small steps count in the mean. Weights in
            bfloat16 are not trained without it.
    """

    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    moments: Moments = "float32"
    stochastic_rounding: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.optimizer.{name} is {getattr(self, name)}; it must be above 0")
        if self.moments not in ("float32", "int8"):
            raise ValueError(f"model.optimizer.moments is {self.moments!r}; it must be float32 or int8")

    def make(
        self, parameters: list[torch.nn.Parameter], num_steps: int
    ) -> tuple[torch.optim.Optimizer, LearningRate]:
        """Create the optimizer and its schedule.

        Args:
            parameters: Parameters to train.
            num_steps: Number of optimizer steps of the whole stage.
        """
        settings: dict[str, Any] = {
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
            "betas": (0.9, 0.95),
        }
        optimizer: torch.optim.Optimizer
        if self.moments == "int8" or self.stochastic_rounding:
            seed = torch.initial_seed() % 2**31
            optimizer = LowPrecisionAdamW(parameters, moments=self.moments, seed=seed, **settings)
        else:
            optimizer = torch.optim.AdamW(parameters, fused=True, **settings)
        optimizer.register_load_state_dict_pre_hook(keep_settings)
        return optimizer, LearningRate(optimizer, lambda step: self.factor(step, num_steps))

    def factor(self, step: int, num_steps: int) -> float:
        """Compute the factor of the peak learning rate at one of ``num_steps`` steps."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        progress = min((step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1), 1.0)
        return 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
