"""The strategies ``ddp`` and ``fsdp`` of ``trainer.strategy``, and the sharding of models by FSDP2."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from typing_extensions import override

from rwml_lightning.functional import packed_logprobs

SHARDED_LOGPROBS = "packed_logprobs"
"""Method of a sharded model that gathers its weights and computes :func:`rwml_lightning.functional.packed_logprobs`."""


class Replicated(DDPStrategy):
    """Data parallelism with the whole model on every rank.

    The module sums the gradients once per step, so no DDP wrapper holds a second copy of them.
    """

    @override
    def configure_ddp(self) -> None:
        assert self.model is not None
        _sync_module_states(self.model)


class Sharded(ModelParallelStrategy):
    """Data parallelism with weights, gradients and moments sharded over all ranks (FSDP2).

    A checkpoint is a single file, which any number of ranks can load.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def find_strategy(given: Any) -> Any:
    """Return the strategy for ``ddp`` and ``fsdp``, and any other value of ``trainer.strategy`` unchanged."""
    own = {"ddp": Replicated, "fsdp": Sharded}
    return own[given]() if isinstance(given, str) and given in own else given


def connect(trainer: L.Trainer, model: L.LightningModule) -> None:
    """Connect the ranks before the first stage, if torchrun has started them.

    Lightning connects them in the first call of the trainer, but the ranks prepare files together before that.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and trainer.world_size > 1:
        trainer.strategy.connect(model)
        trainer.strategy.setup_environment()


def shard(policy: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over the ranks of a mesh, each decoder layer separately."""
    from rwml_lightning.functional.packed import causal_lm, decoder

    for layer in decoder(causal_lm(policy)).layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    fully_shard(
        policy, mesh=mesh, reshard_after_forward=True
    )  # a reference pass in between uses other adapters
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are normalised over the whole step
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply before it sums
    setattr(policy, SHARDED_LOGPROBS, partial(packed_logprobs, policy))
    register_fsdp_forward_method(policy, SHARDED_LOGPROBS)
