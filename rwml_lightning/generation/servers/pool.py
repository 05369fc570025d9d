"""Several vLLM servers that are used as one: requests are spread, failed servers are left out and taken back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwml_lightning.generation.servers.check import Need, WrongServerError
from rwml_lightning.generation.servers.client import ServerClient, ServerFaultError
from rwml_lightning.generation.servers.member import Member
from rwml_lightning.generation.servers.sender import WeightSet

log = logging.getLogger(__name__)

WATCH_S = 2.0
"""Pause in seconds between two attempts to take back a server."""
_WAIT_S = 0.1


class ServersGoneError(ConnectionError):
    """No server can be used, and the time limit for their return has passed."""


@dataclass(frozen=True)
class Limits:
    """Limits of a pool.

    Args:
        concurrency: Maximum number of concurrent requests to one server.
        retries: Maximum number of retries of one request.
        request_s: Time limit for one request, in seconds.
        transfer_s: Time limit for sending the weights to one server, in seconds.
        outage_s: Maximum time in seconds to wait while no server can be used.
    """

    concurrency: int
    retries: int
    request_s: float
    transfer_s: float
    outage_s: float


@dataclass(frozen=True)
class Request:
    """A request for one completion.

    Args:
        body: JSON of the request, without the model.
        group: Number of its prompt. Requests of a group go to the same server, which computes their prompt once.
    """

    body: Mapping[str, Any]
    group: int


class ServerPool:
    """Spreads requests over servers that have the same weights.

    What a server says of its weights decides, so that all ranks of a run agree without talking to each other: one rank
    sends the weights, the others wait until the servers have them.

    Args:
        clients: Clients of the servers.
        need: What every server must be.
        limits: Limits of the pool.
        first: Index of the server that gets the first request. It differs between ranks, to spread small steps.
    """

    def __init__(self, clients: Sequence[ServerClient], need: Need, limits: Limits, first: int = 0) -> None:
        members = [Member(client, need, limits.transfer_s) for client in clients]
        first %= len(members)
        self.members = members[first:] + members[:first]
        self.need = need
        self.limits = limits
        self._updated = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def dtype(self) -> str:
        """Dtype of the servers' weights."""
        return self.members[0].dtype

    async def start(self, wait_s: float) -> None:
        """Check all servers.

        Args:
            wait_s: Maximum time in seconds to wait for a server that does not respond.

        Raises:
            WrongServerError: A server does not respond, or cannot be used.
        """
        deadline = time.monotonic() + wait_s
        await asyncio.gather(*(self._first_check(member, deadline) for member in self.members))
        dtypes = {member.client.url: member.dtype for member in self.members}
        if len(set(dtypes.values())) != 1:
            raise WrongServerError(
                f"the servers compute in different dtypes ({dtypes}): start all with the same --dtype"
            )
        await asyncio.gather(*(member.restore() for member in self.members))
        self._watcher = asyncio.create_task(self._watch())

    async def update(self, weights: WeightSet, cuda_device: int | None) -> None:
        """Give all servers that respond these weights, or wait until another rank has done so.

        Args:
            weights: New weights. Without tensors, another rank sends them.
            cuda_device: Index of the trainer's GPU; ``None`` on a CPU.

        Raises:
            ServersGoneError: No server took the weights.
        """
        self._updated = True
        for member in self.members:
            member.expect(weights, cuda_device)
        await self._some_server()

    async def run(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Run requests and return their completions in order.

        Servers are verified before and after: a server that was started again in between has computed with other weights.
        """
        answers: dict[int, tuple[Member, dict[str, Any]]] = {}
        if not requests:
            return []
        if self._watcher is not None and self._watcher.done():
            self._watcher.result()  # raises what ended it
        await self._verify()
        if not self._updated:
            for member in self.members:
                if member.foreign:
                    raise WrongServerError(f"{member.client.url} {member.reason}")
        while missing := [number for number in range(len(requests)) if number not in answers]:
            await self._run(requests, missing, answers)
            for member in await self._verify():
                log.warning("the completions of %s are made again: %s", member.client.url, member.reason)
                answers = {number: answer for number, answer in answers.items() if answer[0] is not member}
        return [answers[number][1] for number in range(len(requests))]

    async def close(self) -> None:
        """Stop watching and close all connections."""
        if self._watcher is not None:
            self._watcher.cancel()
        for member in self.members:
            await member.close()

    async def _first_check(self, member: Member, deadline: float) -> None:
        while True:
            try:
                await member.first_check()
                return
            except ServerFaultError as error:
                if time.monotonic() >= deadline:
                    url = member.client.url
                    raise self.need.wrong(url, f"does not respond ({error})") from None
            await asyncio.sleep(WATCH_S)

    async def _run(
        self,
        requests: Sequence[Request],
        missing: Sequence[int],
        answers: dict[int, tuple[Member, dict[str, Any]]],
    ) -> None:
        waiting, failures = deque(missing), dict.fromkeys(missing, 0)
        running: dict[asyncio.Task[dict[str, Any]], tuple[int, Member]] = {}
        place: dict[int, Member] = {}
        try:
            while waiting or running:
                if not running:
                    await self._some_server()
                while waiting and (member := self._free(place.get(requests[waiting[0]].group))):
                    number = waiting.popleft()
                    place[requests[number].group] = member
                    call = member.client.complete(requests[number].body, self.limits.request_s)
                    running[asyncio.create_task(call)] = (number, member)
                    member.num_running += 1
                done, _ = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number, member = running.pop(task)
                    member.num_running -= 1
                    try:
                        answers[number] = (member, task.result())
                        member.succeed()
                    except asyncio.CancelledError:
                        waiting.appendleft(number)
                    except ServerFaultError as error:
                        member.lose(str(error))
                        failures[number] += 1
                        if failures[number] > self.limits.retries:
                            raise ServersGoneError(
                                f"a request failed {failures[number]} times, the last time at {member.client.url}: {error}"
                            ) from None
                        waiting.appendleft(number)
                for task, (_, member) in running.items():
                    if not member.ready:  # its health check failed, and its connections may hang
                        task.cancel()
        finally:
            for task, (_, member) in running.items():
                task.cancel()
                member.num_running -= 1

    def _free(self, preferred: Member | None) -> Member | None:
        free = [m for m in self.members if m.ready and m.num_running < self.limits.concurrency]
        if preferred in free:
            return preferred
        return min(free, key=lambda member: member.num_running, default=None)

    async def _some_server(self) -> None:
        """Wait until a server can be used.

        Raises:
            ServersGoneError: The time limit has passed.
        """
        started, said = time.monotonic(), False
        while not any(member.ready for member in self.members):
            await asyncio.gather(*(member.restore() for member in self.members))
            if any(member.ready for member in self.members):
                return
            left = started + self.limits.outage_s - time.monotonic()
            reasons = "; ".join(f"{member.client.url} {member.reason}" for member in self.members)
            if left <= 0:
                raise ServersGoneError(
                    f"no server could be used for {self.limits.outage_s:g} s (outage_timeout_s): {reasons}; start one with: "
                    f"{self.need.command(self.members[0].client.url)}"
                )
            if not said and left < self.limits.outage_s - WATCH_S:
                log.warning("no server can be used; waiting up to %.0f s (%s)", left, reasons)
                said = True
            await asyncio.sleep(_WAIT_S)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await asyncio.gather(*(member.look_after() for member in self.members))

    async def _verify(self) -> list[Member]:
        """Verify the weights of all servers in use; return those that do not have them any more."""
        used = [member for member in self.members if member.ready]
        same = await asyncio.gather(*(member.verify() for member in used))
        return [member for member, verified in zip(used, same, strict=True) if not verified]
