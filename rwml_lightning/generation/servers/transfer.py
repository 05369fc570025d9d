"""Channels that carry weights from a trainer to the workers of one vLLM server: NCCL between GPUs, gloo otherwise."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

BACKEND = "rwml"
"""Name under which a server registers its side of the transfer (:mod:`rwml_lightning.generation.servers.worker`)."""
Transport = Literal["nccl", "gloo"]
JOIN_S = 60.0
_POLL_S = 0.001


class Channel(Protocol):
    """A group of one trainer (rank 0) and the workers of one server."""

    def device(self, own: torch.device) -> torch.device:
        """Return the device for tensors to receive, which is ``own`` or the CPU."""

    def broadcast(self, tensor: Tensor) -> None:
        """Send the tensor of rank 0 to all other ranks, and return when this rank is done with it."""

    def close(self) -> None:
        """Leave the group. Ranks that wait for this one fail."""


@dataclass(frozen=True)
class Meeting:
    """Where and how the members of a channel meet.

    Args:
        address: Address of the trainer in the network of the server.
        port: Port of the trainer.
        size: Number of members: the trainer and all workers of the server.
        transport: ``nccl`` or ``gloo``.
        timeout_s: Time limit in seconds for the broadcast of one tensor.
    """

    address: str
    port: int
    size: int
    transport: Transport
    timeout_s: float

    def join(self, rank: int, listener: socket.socket | None = None) -> Channel:
        """Join the channel, and return when all members have joined.

        Args:
            rank: Rank in the channel.
            listener: Socket that listens on the address and port; for the trainer.
        """
        kind = _Nccl if self.transport == "nccl" else _Gloo
        return kind(self, rank, listener)


def listen_for(host: str) -> socket.socket:
    """Listen on a free port of the interface that leads to a host, and on no other."""
    listener = socket.socket(socket.AF_INET)
    listener.bind((own_address(host), 0))
    listener.listen()
    return listener


def own_address(host: str) -> str:
    """Return the address of this machine in the network that leads to a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])


class _Gloo:
    def __init__(self, meeting: Meeting, rank: int, listener: socket.socket | None) -> None:
        limit = timedelta(seconds=JOIN_S)
        self._store = dist.TCPStore(
            meeting.address, meeting.port, meeting.size, is_master=rank == 0, timeout=limit, wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )  # fmt: skip
        gloo: Any = dist.ProcessGroupGloo  # its stubs lack most of its methods
        options = gloo._Options()
        # The default is the interface of the host's name, which may not lead to the other machine.
        options._devices = [gloo.create_device(hostname=own_address(meeting.address))]
        options._timeout = limit
        self._group: Any = gloo(self._store, rank, meeting.size, options)
        self._timeout = timedelta(seconds=meeting.timeout_s)

    def device(self, own: torch.device) -> torch.device:
        return torch.device("cpu")

    def broadcast(self, tensor: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, self._timeout
        group = self._group
        if group is None:
            raise RuntimeError("the channel is closed")
        group.broadcast([tensor], options).wait()

    def close(self) -> None:
        self._group = None  # its connections end with the last reference to it


class _Nccl:
    def __init__(self, meeting: Meeting, rank: int, listener: socket.socket | None) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
        from vllm.utils.nccl import unpinned_nccl_env

        group = StatelessProcessGroup.create(
            meeting.address,
            meeting.port,
            rank,
            meeting.size,
            store_timeout=int(JOIN_S),
            listen_socket=listener,
        )
        with unpinned_nccl_env():
            self._group = PyNcclCommunicator(group, device=torch.cuda.current_device())
        self._timeout_s = meeting.timeout_s

    def device(self, own: torch.device) -> torch.device:
        return own

    def broadcast(self, tensor: Tensor) -> None:
        on_device = tensor.to(self._group.device)
        self._group.broadcast(on_device, src=0, stream=torch.cuda.current_stream())
        done = torch.cuda.Event()
        done.record()
        deadline = time.monotonic() + self._timeout_s
        while not done.query():  # NCCL itself waits for a dead member for ever
            if time.monotonic() > deadline:
                self.close()
                raise TimeoutError(f"a tensor was not taken within {self._timeout_s:g} s")
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._group.destroy()
