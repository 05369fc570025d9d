"""Code inside the workers of a vLLM server that takes weights from a trainer. Only vLLM imports this module.

A server names :class:`ServerExtension` as its worker extension. The import registers :class:`TransferEngine`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rwml_lightning.functional import combine_digests, digesting
from rwml_lightning.generation.servers.check import describe_model
from rwml_lightning.generation.servers.transfer import BACKEND, Channel, Meeting, Transport
from rwml_lightning.generation.vllm_worker import (
    WorkerExtension,
    forget_expert_kernels,
    model_skeleton,
    renew_tied_head,
)
from rwml_lightning.weights import checkpoint_tensors

INCOMPLETE = "incomplete"
"""Digest of weights that are partly old and partly new."""


@dataclass
class JoinInfo(WeightTransferInitInfo):
    """Arguments of :class:`rwml_lightning.generation.servers.transfer.Meeting`."""

    address: str
    port: int
    size: int
    transport: Transport
    timeout_s: float


@dataclass
class TensorList(WeightTransferUpdateInfo):
    """Names, dtypes and shapes of the tensors that follow, in transformers' naming."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class TransferEngine(WeightTransferEngine[JoinInfo, TensorList]):
    """Takes all weights of a model from a trainer, and digests them as it reads them.

    Attributes:
        digest: Digest of the last complete set of weights; ``None`` for the weights of the model folder, and
            :data:`INCOMPLETE` from the start of an update to its end, or if it was cut.
    """

    init_info_cls = JoinInfo
    update_info_cls = TensorList

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.digest: str | None = None
        self._received = INCOMPLETE
        self._channel: Channel | None = None

    def init_transfer_engine(self, init_info: JoinInfo) -> None:
        self.shutdown()
        self._channel = Meeting(**vars(init_info)).join(1 + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        if self.digest == INCOMPLETE:  # vLLM would add to the layers that the cut update left half loaded
            finalize_layerwise_reload(self.model, self.model_config)
        self.digest = self._received = INCOMPLETE
        forget_expert_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: TensorList) -> None:
        digests: list[int] = []
        tensors = digesting(self._tensors(update_info), digests)
        model: Any = self.model
        model.load_weights(checkpoint_tensors(model_skeleton(self.model_config.model), tensors))
        self._received = combine_digests(digests)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        renew_tied_head(self.model)
        self.digest = self._received

    def shutdown(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _tensors(self, info: TensorList) -> Iterator[tuple[str, Tensor]]:
        if self._channel is None:
            raise RuntimeError("no trainer is connected")
        for name, dtype, shape in zip(info.names, info.dtypes, info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._channel.device(self.device))
            self._channel.broadcast(tensor)
            yield name, tensor


class ServerExtension(WorkerExtension):
    """Adds the description of a worker to the methods that a trainer can call."""

    vllm_config: Any  # attributes of vLLM's worker
    weight_transfer_engine: Any
    _weight_update_active: bool

    def describe(self) -> dict[str, Any]:
        """Describe the model, the settings and the weights of this worker."""
        config, engine = self.vllm_config, self.weight_transfer_engine
        takes_weights = isinstance(engine, TransferEngine)
        return {
            "process": _PROCESS,
            "digest": engine.digest if takes_weights else None,
            "updating": self._weight_update_active,
            "takes_weights": takes_weights,
            "device": config.device_config.device_type,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "chunked_prefill": bool(config.scheduler_config.enable_chunked_prefill),
            "data_parallel_size": config.parallel_config.data_parallel_size,
            "world_size": config.parallel_config.world_size,
            "model": describe_model(config.model_config.model),
        }


_PROCESS = f"{os.getpid()}-{uuid.uuid4().hex}"
WeightTransferEngineFactory.register_engine(BACKEND, TransferEngine)
