"""AdamW for weights in bfloat16: stochastic rounding, and moments of 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from rwml_lightning.functional.low_precision import (
    Quantised,
    block_size,
    dequantise,
    quantise,
    random_bits,
    round_stochastically,
)
from rwml_lightning.seeds import derive_seed

Moments = Literal["float32", "int8"]
MOMENTS = ("exp_avg", "exp_avg_sq")
_CHUNKS = {"cpu": 2**18, "cuda": 2**24}
"""Numbers that are updated at a time: in the cache of a CPU, and in half a GiB of a card."""


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW that computes in float32, on a part of a parameter at a time, and stores what it keeps in fewer bytes.

    A parameter in bfloat16 is rounded stochastically, so that small steps count in the mean; a parameter in float32 is not
    rounded. The random bits are a function of seed, step, parameter and position, so that a resumed run takes the same steps, and
    so do ranks that hold copies or shards.

    Args:
        parameters: Parameters to train.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Term added to the denominator.
        weight_decay: Decoupled weight decay.
        moments: ``float32``, or ``int8`` for 8 bits a number and a scale per block of a row. A parameter of one dimension,
            or of rows that :func:`block_size` cannot divide, has moments in float32.
        seed: Seed of the rounding.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        moments: Moments = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments: Moments = moments
        self.seed = seed

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, number)
                number += 1

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state.update(new_moments(parameter, self.moments))
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        rate = group["lr"] / (1 - beta1**step)
        correction = math.sqrt(1 - beta2**step)
        key = (derive_seed(self.seed, "rounding", step), derive_seed(self.seed, "rounding", "of", number))
        first = _offset(parameter)
        weights, gradients = _local(parameter).view(-1), _local(parameter.grad).reshape(-1)
        stored = {name: _local(value).view(-1) for name, value in state.items() if name != "step"}
        block = parameter.shape[-1] // state["exp_avg_scale"].shape[-1] if "exp_avg_scale" in state else 1
        chunk = max(_CHUNKS.get(weights.device.type, 2**24) // block, 1) * block
        for start in range(0, len(weights), chunk):
            part, blocks = slice(start, start + chunk), slice(start // block, (start + chunk) // block)
            gradient = gradients[part].float()
            mean = _load(stored, "exp_avg", part, blocks).mul_(beta1).add_(gradient, alpha=1 - beta1)
            variance = _load(stored, "exp_avg_sq", part, blocks)
            variance.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            updated = weights[part].to(torch.float32, copy=True).mul_(1 - group["lr"] * group["weight_decay"])
            updated.addcdiv_(mean, variance.sqrt().div_(correction).add_(group["eps"]), value=-rate)
            if parameter.dtype == torch.bfloat16:
                bits = random_bits(key, first + start, len(updated), updated.device)
                updated = round_stochastically(updated, bits)
            weights[part] = updated
            _store(stored, "exp_avg", part, blocks, mean, block)
            _store(stored, "exp_avg_sq", part, blocks, variance, block)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments in their own dtype; torch would convert them to the dtype of the parameter."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][name] = value if name == "step" else value.to(parameter.device)


def new_moments(parameter: nn.Parameter, moments: Moments) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step."""
    state = {"step": torch.tensor(0.0)}
    block = moment_block(parameter, moments)
    for name in MOMENTS:
        if block is None:
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
            continue
        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
        columns = parameter.shape[-1] // block
        # A strided view of the parameter's shape keeps the shards of a DTensor.
        state[f"{name}_scale"] = torch.zeros_like(parameter[..., :columns], dtype=torch.float32)
    return state


def moment_block(parameter: Tensor, moments: Moments) -> int | None:
    """Return the block size of a parameter's moments of 8 bits, or ``None`` for moments in float32."""
    return block_size(parameter.shape[-1]) if moments == "int8" and parameter.ndim > 1 else None


def _load(stored: dict[str, Tensor], name: str, part: slice, blocks: slice) -> Tensor:
    if f"{name}_scale" not in stored:
        return stored[name][part]
    return dequantise(
        Quantised(stored[name][part], stored[f"{name}_scale"][blocks]), signed=name == "exp_avg"
    )


def _store(
    stored: dict[str, Tensor], name: str, part: slice, blocks: slice, values: Tensor, block: int
) -> None:
    if f"{name}_scale" not in stored:
        return  # updated in place
    stored[name][part], stored[f"{name}_scale"][blocks] = quantise(values, block, signed=name == "exp_avg")


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _offset(parameter: nn.Parameter) -> int:
    """Return the position of the first number of this rank's shard in the whole parameter."""
    if not isinstance(parameter, DTensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return offsets[0] * math.prod(parameter.shape[1:])
