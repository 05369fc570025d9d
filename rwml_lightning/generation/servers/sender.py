"""Send a trainer's weights to one vLLM server, through vLLM's endpoints for weight transfer, and verify what it took."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rwml_lightning.generation.servers.client import RefusedError, ServerClient, ServerFaultError
from rwml_lightning.generation.servers.transfer import JOIN_S, Channel, Meeting, listen_for

_T = TypeVar("_T")
_RESET_ATTEMPTS = 20


@dataclass(frozen=True)
class WeightSet:
    """All weights of a version.

    Args:
        digest: Digest of the tensors.
        tensors: Names and values on the CPU; ``None`` on a rank that does not send.
    """

    digest: str
    tensors: Sequence[tuple[str, Tensor]] | None


class WeightSender:
    """Sends weights to one server.

    Each server has a channel of its own: a group of processes cannot lose or gain a member, and servers come and go.

    Args:
        server: Client of the server.
        timeout_s: Time limit in seconds for a whole transfer.
    """

    def __init__(self, server: ServerClient, timeout_s: float) -> None:
        self.server = server
        self.timeout_s = timeout_s
        self._channel: Channel | None = None
        self._process = ""

    async def send(self, weights: WeightSet, description: Mapping[str, Any], cuda_device: int | None) -> None:
        """Send weights.

        Args:
            weights: Weights with tensors.
            description: Description of the server (``ServerExtension.describe``).
            cuda_device: Index of the trainer's GPU; ``None`` on a CPU.

        Raises:
            ServerFaultError: The transfer was cut, or the server took other tensors. The server must not be used.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._send(weights, description, cuda_device)
        except BaseException as error:
            self.leave()
            if isinstance(error, TimeoutError):
                raise ServerFaultError(f"did not take the weights within {self.timeout_s:g} s") from None
            if isinstance(error, RefusedError | RuntimeError):
                raise ServerFaultError(f"did not take the weights ({_first_line(error)})") from None
            raise

    async def _send(
        self, weights: WeightSet, description: Mapping[str, Any], cuda_device: int | None
    ) -> None:
        assert weights.tensors is not None
        ask = self.server.ask
        if description["updating"]:  # an earlier update was cut between two calls
            await ask("POST", "/finish_weight_update", {})
        if self._channel is None or self._process != description["process"]:
            self.leave()
            self._channel = await self._join(description, cuda_device)
            self._process = description["process"]
        await ask("POST", "/start_weight_update")
        info = {
            "names": [name for name, _ in weights.tensors],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in weights.tensors],
            "shapes": [list(tensor.shape) for _, tensor in weights.tensors],
        }
        channel, tensors = self._channel, [tensor for _, tensor in weights.tensors]
        took = asyncio.create_task(
            ask("POST", "/update_weights", {"update_info": info}, timeout_s=self.timeout_s)
        )
        await self._both(took, _in_thread(_broadcast, channel, tensors, cuda_device))
        await ask("POST", "/finish_weight_update", {}, timeout_s=self.timeout_s)
        await self._reset_prefix_cache()
        found = await self.server.describe()
        if found["digest"] != weights.digest:
            raise ServerFaultError(
                f"took other tensors than the trainer sent (digest {found['digest']}, not {weights.digest})"
            )

    async def _join(self, description: Mapping[str, Any], cuda_device: int | None) -> Channel:
        on_gpus = description["device"] == "cuda" and cuda_device is not None
        host = urlsplit(self.server.url).hostname
        assert host is not None
        with listen_for(host) as listener:
            address, port = listener.getsockname()
            size = 1 + int(description["world_size"])
            meeting = Meeting(address, port, size, "nccl" if on_gpus else "gloo", self.timeout_s)
            joined = asyncio.create_task(
                self.server.ask(
                    "POST", "/init_weight_transfer_engine", {"init_info": asdict(meeting)}, 2 * JOIN_S
                )
            )
            return await self._both(joined, _in_thread(_join, meeting, listener, cuda_device))

    async def _both(self, request: asyncio.Task[Any], own: asyncio.Future[_T]) -> _T:
        """Wait for a request and for the trainer's side of it, and stop waiting if one of them fails."""
        try:
            await asyncio.wait((request, own), return_when=asyncio.FIRST_EXCEPTION)
            if request.done():
                request.result()
            if own.done():
                own.result()
            await request
            return await own
        finally:
            request.cancel()

    async def _reset_prefix_cache(self) -> None:
        """Drop the cached prefixes; they are keys and values of the old weights."""
        for _ in range(_RESET_ATTEMPTS):  # an abandoned request may hold them a moment longer
            if (await self.server.ask("POST", "/reset_prefix_cache"))["success"]:
                return
            await asyncio.sleep(0.1)
        raise ServerFaultError("did not drop its prefix cache, because it has requests of another client")

    def leave(self) -> None:
        """Close the channel, if there is one. A server that waits for tensors ends the transfer with an error."""
        if self._channel is not None:
            with contextlib.suppress(RuntimeError):
                self._channel.close()
        self._channel = None


def _in_thread(work: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
    """Run work in a daemon thread: gloo may wait for the server until its time limit, and the program may end before."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def finish(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        done: Callable[[Any], None]
        outcome: Any
        try:
            done, outcome = future.set_result, work(*arguments)
        except Exception as error:
            done, outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
            loop.call_soon_threadsafe(finish, done, outcome)

    threading.Thread(target=run, daemon=True, name="weight-transfer").start()
    return future


def _join(meeting: Meeting, listener: Any, cuda_device: int | None) -> Channel:
    if cuda_device is not None:
        torch.cuda.set_device(cuda_device)  # the current device belongs to a thread
    return meeting.join(0, listener)


def _broadcast(channel: Channel, tensors: Sequence[Tensor], cuda_device: int | None) -> None:
    if cuda_device is not None:
        torch.cuda.set_device(cuda_device)
    for tensor in tensors:
        channel.broadcast(tensor)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
