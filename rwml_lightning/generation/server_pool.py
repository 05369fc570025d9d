"""Several vLLM servers that are used as one: requests are spread, failed servers are left out and taken back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwml_lightning.generation.server_check import Need, WrongServerError
from rwml_lightning.generation.server_client import RefusedError, ServerClient, ServerFaultError
from rwml_lightning.generation.weight_sender import WeightSender, WeightSet

log = logging.getLogger(__name__)

WATCH_S = 2.0
"""Pause in seconds between two attempts to take back a server."""
_WAIT_S = 0.1
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0


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


class Member:
    """A server of the pool.

    Attributes:
        ready: Whether the server has the right weights, as far as this process knows.
        process: Identity of the server's process when its weights were last verified.
        reason: Why the server is not ready.
        left_out: Whether a message has said that the server is left out.
        foreign: Whether the server has weights that this process has not sent or expected.
        num_running: Number of requests under way.
        pause_s: Pause before the server is tried again. Failures double it, and a completion ends it.
        not_before: Time of the monotonic clock at which the pause ends.
    """

    def __init__(self, client: ServerClient, transfer_s: float) -> None:
        self.client = client
        self.sender = WeightSender(client, transfer_s)
        self.ready = False
        self.process = ""
        self.reason = "not checked yet"
        self.left_out = False
        self.foreign = False
        self.num_running = 0
        self.pause_s = 0.0
        self.not_before = 0.0
        self.lock = asyncio.Lock()


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
        members = [Member(client, limits.transfer_s) for client in clients]
        first %= len(members)
        self.members = members[first:] + members[:first]
        self.need = need
        self.limits = limits
        self.dtype = ""
        self._weights: WeightSet | None = None
        self._cuda_device: int | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, wait_s: float) -> None:
        """Check all servers.

        Args:
            wait_s: Maximum time in seconds to wait for a server that does not respond.

        Raises:
            WrongServerError: A server does not respond, or cannot be used.
        """
        deadline = time.monotonic() + wait_s
        found = await asyncio.gather(*(self._first_check(member, deadline) for member in self.members))
        dtypes = {member.client.url: description["dtype"] for member, description in zip(self.members, found, strict=True)}  # fmt: skip
        if len(set(dtypes.values())) != 1:
            raise WrongServerError(
                f"the servers compute in different dtypes ({dtypes}): start all with the same --dtype"
            )
        self.dtype = found[0]["dtype"]
        await asyncio.gather(*map(self._restore, self.members))
        self._watcher = asyncio.create_task(self._watch())

    async def update(self, weights: WeightSet, cuda_device: int | None) -> None:
        """Give all servers that respond these weights, or wait until another rank has done so.

        Args:
            weights: New weights. Without tensors, another rank sends them.
            cuda_device: Index of the trainer's GPU; ``None`` on a CPU.

        Raises:
            ServersGoneError: No server took the weights.
        """
        self._weights, self._cuda_device = weights, cuda_device
        for member in self.members:
            self._lose(member, "has not taken the weights of this version yet", quiet=True)
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
        if self._weights is None:
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
            member.sender.leave()
            await member.client.close()

    async def _first_check(self, member: Member, deadline: float) -> dict[str, Any]:
        while True:
            try:
                return await member.client.check(self.need)
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
                        member.pause_s = 0.0
                    except asyncio.CancelledError:
                        waiting.appendleft(number)
                    except ServerFaultError as error:
                        self._lose(member, str(error))
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

    def _lose(self, member: Member, reason: str, quiet: bool = False) -> None:
        if member.ready and not quiet:
            log.warning("%s is left out: %s", member.client.url, reason)
            member.left_out = True
            member.pause_s = min(max(_FIRST_PAUSE_S, 2 * member.pause_s), _LONGEST_PAUSE_S)
            member.not_before = time.monotonic() + member.pause_s
        member.ready, member.reason = False, reason

    async def _some_server(self) -> None:
        """Wait until a server can be used.

        Raises:
            ServersGoneError: The time limit has passed.
        """
        started, said = time.monotonic(), False
        while not any(member.ready for member in self.members):
            await asyncio.gather(*map(self._restore, self.members))
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
        """Check the health of servers in use, and take back those that are left out."""

        async def look_after(member: Member) -> None:
            if not member.ready:
                await self._restore(member)
                return
            try:
                await member.client.ask("GET", "/health")
            except (ServerFaultError, RefusedError) as error:
                self._lose(member, str(error))

        while True:
            await asyncio.sleep(WATCH_S)
            await asyncio.gather(*map(look_after, self.members))

    async def _restore(self, member: Member) -> None:
        """Use a server again if it is the right one and has the weights, which this rank sends if it can."""
        async with member.lock:
            weights = self._weights
            if member.ready or time.monotonic() < member.not_before:
                return
            try:
                found = await member.client.check(self.need)
                if found["dtype"] != self.dtype:
                    raise ServerFaultError(f"computes in {found['dtype']}, not in {self.dtype} as before")
                if weights is not None and weights.tensors is not None and found["digest"] != weights.digest:
                    await member.sender.send(weights, found, self._cuda_device)
                    found = await member.client.describe()
                expected = None if weights is None else weights.digest
                member.foreign = found["digest"] != expected
                if found["digest"] != expected:
                    raise ServerFaultError(_other_weights(found["digest"]))
            except (ServerFaultError, WrongServerError, RefusedError) as error:
                member.reason = str(error).removeprefix(f"{member.client.url} ")
                return
            if weights is not self._weights:
                return
            member.ready, member.process = True, found["process"]
            if member.left_out:
                log.warning("%s is used again", member.client.url)
                member.left_out = False

    async def _verify(self) -> list[Member]:
        """Verify the weights of all servers in use; return those that do not have them any more."""
        used = [member for member in self.members if member.ready]
        expected = None if self._weights is None else self._weights.digest

        async def is_wrong(member: Member) -> bool:
            try:
                found = await member.client.describe()
            except (ServerFaultError, RefusedError) as error:
                self._lose(member, str(error))
                return True
            if (found["process"], found["digest"]) == (member.process, expected):
                return False
            self._lose(member, _other_weights(found["digest"]))
            return True

        wrong = await asyncio.gather(*map(is_wrong, used))
        return [member for member, lost in zip(used, wrong, strict=True) if lost]


def _other_weights(digest: str | None) -> str:
    if digest is None:
        return "has the weights of its model folder, not those of this run"
    return f"has the weights of another run or step (digest {digest}): update them, or start the server again"
