"""An OpenAI-compatible server as rewards use it: waited for when it is down, asked again when it answers nonsense."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
import httpx
from anyio.from_thread import start_blocking_portal

from rwml_lightning.credentials import check_server_url, read_key

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
"""Before the second attempt; each further pause is twice as long, up to :data:`LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S = 30.0
_BUSY = (429, 502, 503, 504)
_OWN_FAULT = (400, 413, 422)
Answer = TypeVar("Answer", covariant=True)


class ServerError(ConnectionError):
    """A server without which the run cannot go on: down for too long, or not the one that the config means."""


class NoAnswerError(ServerError):
    """One request got no usable answer, however often it was sent."""


class RefusedError(NoAnswerError):
    """The server will not answer this one request, for example because its text is too long."""


@dataclass(frozen=True)
class Request(Generic[Answer]):
    """One question to a server.

    Args:
        body: JSON to send, given how often it was answered badly before; ``model`` is added.
        read: Makes an answer of the JSON that comes back; a ValueError says why it is none.
    """

    body: Callable[[int], Mapping[str, Any]]
    read: Callable[[Any], Answer]


@dataclass(frozen=True)
class Server:
    """Where an OpenAI-compatible server is (vLLM, for example), and how much patience it deserves.

    Args:
        model: Name under which it serves the model.
        base_url: Address up to and with ``/v1``.
        api_key_env: Name of the environment variable that holds the key; the key itself belongs in no config.
        timeout_s: Most seconds that one answer may take.
        max_wait_s: Most seconds to wait for a server that is down or too busy, before the run stops.
        retries: How often a request is sent again that was answered with nonsense or too late.
        concurrency: Most requests under way at once.
        extra_body: What every request carries besides, for example ``{truncate_prompt_tokens: -1}`` for vLLM.
    """

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str | None = None
    timeout_s: float = 60.0
    max_wait_s: float = 600.0
    retries: int = 3
    concurrency: int = 8
    extra_body: dict[str, Any] = field(default_factory=dict)


class ServerClient:
    """Sends a step's requests to a server, several at once.

    Args:
        server: Where it is.
        key: Name of the setting, for errors.

    Raises:
        ValueError: A limit that makes no sense, an address that is none, a key where a name belongs, or an environment
            variable that is not set.
    """

    def __init__(self, server: Server, key: str = "reward.server") -> None:
        _check(server, key)
        self.server = server
        self.setting = key
        self._key = read_key(server.api_key_env, f"{key}.api_key_env")
        self._down = False

    def ask(self, path: str, requests: Sequence[Request[Answer]]) -> list[Answer | NoAnswerError]:
        """Answers in the order of the requests, and errors where one got none.

        Args:
            path: Below ``base_url``, for example ``embeddings``.
            requests: What to ask.

        Raises:
            ServerError: Down for longer than ``max_wait_s``, or the address, the model or the key is wrong.
        """
        if not requests:
            return []
        # In a thread of its own, so that it works under a notebook's event loop, and Ctrl-C ends it at once.
        with start_blocking_portal() as portal:
            return portal.call(self._ask_all, path, requests)

    async def _ask_all(self, path: str, requests: Sequence[Request[Answer]]) -> list[Answer | NoAnswerError]:
        answers: dict[int, Answer | NoAnswerError] = {}
        places = anyio.CapacityLimiter(self.server.concurrency)
        connect_s = min(10.0, self.server.timeout_s / 2)

        async def work(number: int) -> None:
            async with places:
                answers[number] = await self._ask(client, path, requests[number])

        try:
            async with (
                httpx.AsyncClient(
                    timeout=httpx.Timeout(None, connect=connect_s),
                    headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                ) as client,
                anyio.create_task_group() as tasks,
            ):
                for number in range(len(requests)):
                    tasks.start_soon(work, number)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # all of them say the same
        return [answers[number] for number in range(len(requests))]

    async def _ask(
        self, client: httpx.AsyncClient, path: str, request: Request[Answer]
    ) -> Answer | NoAnswerError:
        server, url = self.server, f"{self.server.base_url.rstrip('/')}/{path}"
        failures, pause = 0, FIRST_PAUSE_S
        down_since: float | None = None
        while True:
            body = {"model": server.model, **request.body(failures), **server.extra_body}
            try:
                with anyio.fail_after(server.timeout_s):
                    response = await client.post(url, json=body)
                answer = request.read(self._json(response))
            except RefusedError as refused:
                return refused
            except (TimeoutError, httpx.ReadTimeout, httpx.DecodingError, ValueError) as error:
                failures, down_since = failures + 1, None
                late = isinstance(error, TimeoutError | httpx.ReadTimeout)
                why = (
                    f"nothing within {server.timeout_s:g} s ({self.setting}.timeout_s)"
                    if late
                    else str(error)
                )
                if failures > server.retries:
                    return NoAnswerError(
                        f"{url} gave no usable answer in {failures} attempts; the last: {why}"
                    )
            except httpx.TransportError as error:
                down_since = down_since or time.monotonic()
                left = down_since + server.max_wait_s - time.monotonic()
                why = str(error) or type(error).__name__
                if left <= 0:
                    raise ServerError(
                        f"{url} does not answer ({why}) and has not for {server.max_wait_s:g} s "
                        f"({self.setting}.max_wait_s). Start it, or name another in {self.setting}.base_url; the same command "
                        "goes on from the last checkpoint"
                    ) from None
                if not self._down:
                    log.warning("%s does not answer (%s); waiting for it, at most %.0f s", url, why, left)
                self._down = True
                pause = min(pause, left)
            else:
                if self._down:
                    log.warning("%s answers again", url)
                self._down = False
                return answer
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _json(self, response: httpx.Response) -> Any:
        """Body of a good answer; of another an error that says what to do about it."""
        said = f"{response.url} answered {self._describe(response)}"
        if response.status_code in _BUSY:
            raise httpx.NetworkError(self._describe(response))
        if response.status_code in _OWN_FAULT:
            raise RefusedError(said)
        if response.is_redirect or response.is_client_error:
            raise ServerError(
                f"{said}. Are {self.setting}.base_url, {self.setting}.model and {self.setting}.api_key_env right?"
            )
        if not response.is_success:
            raise ValueError(self._describe(response))
        return response.json()

    def _describe(self, response: httpx.Response) -> str:
        """Status and the beginning of the text, without the key that some servers repeat."""
        text = " ".join(response.text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return f"{response.status_code} {response.reason_phrase}: {text[:200]}"


def _check(server: Server, key: str) -> None:
    for name, least in (("timeout_s", 0.001), ("max_wait_s", 0), ("retries", 0), ("concurrency", 1)):
        if not getattr(server, name) >= least:
            raise ValueError(f"{key}.{name} is {getattr(server, name)}; it must be at least {least}")
    check_server_url(server.base_url, f"{key}.base_url")
