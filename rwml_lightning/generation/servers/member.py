"""One server of a pool: whether it has the right weights, and how it gets them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from rwml_lightning.generation.servers.check import Need, WrongServerError
from rwml_lightning.generation.servers.client import RefusedError, ServerClient, ServerFaultError
from rwml_lightning.generation.servers.sender import WeightSender, WeightSet

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0


class Member:
    """A server that is used while it has the expected weights.

    Args:
        client: Client of the server.
        need: What the server must be.
        transfer_s: Time limit for sending the weights, in seconds.

    Attributes:
        ready: Whether the server has the expected weights, as far as this process knows.
        reason: Why the server is not ready.
        foreign: Whether the server has weights that this process has not sent or expected.
        num_running: Number of requests under way.
        dtype: Dtype of the server's weights; empty before the first check.
    """

    def __init__(self, client: ServerClient, need: Need, transfer_s: float) -> None:
        self.client = client
        self.need = need
        self.ready = False
        self.reason = "not checked yet"
        self.foreign = False
        self.num_running = 0
        self.dtype = ""
        self._sender = WeightSender(client, transfer_s)
        self._weights: WeightSet | None = None
        self._cuda_device: int | None = None
        self._process = ""
        self._said = False
        self._pause_s = self._not_before = 0.0
        self._lock = asyncio.Lock()

    async def first_check(self) -> None:
        """Check that this is a server that the trainer can use; see :meth:`ServerClient.check`."""
        self.dtype = (await self.client.check(self.need))["dtype"]

    def expect(self, weights: WeightSet, cuda_device: int | None) -> None:
        """Leave the server out until it has these weights."""
        self._weights, self._cuda_device = weights, cuda_device
        self.ready, self.reason = False, "has not taken the weights of this version yet"

    def lose(self, reason: str) -> None:
        """Leave the server out until it has been checked, after a pause that grows with each failure."""
        if self.ready:
            log.warning("%s is left out: %s", self.client.url, reason)
            self._said = True
            self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self._not_before = time.monotonic() + self._pause_s
        self.ready, self.reason = False, reason

    def succeed(self) -> None:
        """Record that the server completed a request."""
        self._pause_s = 0.0

    async def restore(self) -> None:
        """Use the server again if it is the right one and has the weights, which are sent if this process has them."""
        async with self._lock:
            if self.ready or time.monotonic() < self._not_before:
                return
            weights = self._weights
            try:
                found = await self._with_weights(weights)
            except (ServerFaultError, WrongServerError, RefusedError) as error:
                self.reason = str(error).removeprefix(f"{self.client.url} ")
                return
            if weights is not self._weights:
                return
            self.ready, self._process = True, found["process"]
            if self._said:
                log.warning("%s is used again", self.client.url)
                self._said = False

    async def look_after(self) -> None:
        """Check the health of a server in use, and take back one that is left out."""
        if not self.ready:
            await self.restore()
            return
        try:
            await self.client.ask("GET", "/health")
        except (ServerFaultError, RefusedError) as error:
            self.lose(str(error))

    async def verify(self) -> bool:
        """Return whether the server is the same process with the same weights as when it was taken into use."""
        try:
            found = await self.client.describe()
        except (ServerFaultError, RefusedError) as error:
            self.lose(str(error))
            return False
        same = (found["process"], found["digest"]) == (self._process, _digest(self._weights))
        if not same:
            self.lose(_other_weights(found["digest"]))
        return same

    async def close(self) -> None:
        """Close all connections."""
        self._sender.leave()
        await self.client.close()

    async def _with_weights(self, weights: WeightSet | None) -> dict[str, Any]:
        """Return the description of the server, which has the weights.

        Raises:
            ServerFaultError: It does not have them.
        """
        found = await self.client.check(self.need)
        if found["dtype"] != self.dtype:
            raise ServerFaultError(f"computes in {found['dtype']}, not in {self.dtype} as before")
        if weights is not None and weights.tensors is not None and found["digest"] != weights.digest:
            await self._sender.send(weights, found, self._cuda_device)
            found = await self.client.describe()
        self.foreign = found["digest"] != _digest(weights)
        if self.foreign:
            raise ServerFaultError(_other_weights(found["digest"]))
        return found


def _digest(weights: WeightSet | None) -> str | None:
    return None if weights is None else weights.digest


def _other_weights(digest: str | None) -> str:
    if digest is None:
        return "has the weights of its model folder, not those of this run"
    return f"has the weights of another run or step (digest {digest}): update them, or start the server again"
