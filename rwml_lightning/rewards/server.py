"""Client for an OpenAI-compatible server. It waits for a server that is down and retries after unusable responses."""

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
"""Pause before the second attempt, in seconds; each further pause is twice as long, up to :data:`LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S = 30.0
_BUSY = (429, 502, 503, 504)
_REFUSED = (400, 413, 422)
Answer = TypeVar("Answer", covariant=True)


class ServerError(ConnectionError):
    """The run cannot continue: the server is down for too long, or the config points to a wrong server, model or key."""


class NoAnswerError(ServerError):
    """A request got no usable response after all retries."""


class RefusedError(NoAnswerError):
    """The server refuses a request, for example because its text is too long."""


@dataclass(frozen=True)
class Request(Generic[Answer]):
    """A request to a server.

    Args:
        body: Function from the number of failed attempts to the JSON body; ``model`` is added.
        read: Function from the response JSON to the answer; it raises ValueError with the reason if there is none.
    """

    body: Callable[[int], Mapping[str, Any]]
    read: Callable[[Any], Answer]


@dataclass(frozen=True)
class Server:
    """Address, time limits and retries of an OpenAI-compatible server, for example vLLM.

    Args:
        model: Name of the model on the server.
        base_url: Address, including ``/v1``.
        api_key_env: Name of the environment variable that holds the key; never write the key itself in a config.
        timeout_s: Maximum time for one response, in seconds.
        max_wait_s: Maximum time to wait for a server that is down or too busy before the run stops, in seconds.
        retries: Maximum number of retries of a request after an unusable or late response.
        concurrency: Maximum number of concurrent requests.
        extra_body: Additional fields of every request, for example ``{truncate_prompt_tokens: -1}`` for vLLM.
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
    """Sends the requests of a step to a server concurrently.

    Args:
        server: Settings of the server.
        key: Config key of the server, for error messages.

    Raises:
        ValueError: If a limit is out of range, the address is invalid, ``api_key_env`` holds a key instead of the name of a
            variable, or the environment variable is not set.
    """

    def __init__(self, server: Server, key: str = "reward.server") -> None:
        _check(server, key)
        self.server = server
        self.setting = key
        self._key = read_key(server.api_key_env, f"{key}.api_key_env")
        self._down = False

    def ask(self, path: str, requests: Sequence[Request[Answer]]) -> list[Answer | NoAnswerError]:
        """Send requests and return their answers in order; an error stands in for a missing answer.

        Args:
            path: Path below ``base_url``, for example ``embeddings``.
            requests: Requests to send.

        Raises:
            ServerError: If the server is down for longer than ``max_wait_s``, or the address, the model or the key is wrong.
        """
        if not requests:
            return []
        # Runs in a separate thread, so that it works inside the event loop of a notebook and Ctrl-C stops it at once.
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
            raise group.exceptions[0] from None  # all exceptions have the same cause
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
                why = str(error)
                if isinstance(error, TimeoutError | httpx.ReadTimeout):
                    why = f"no response within {server.timeout_s:g} s ({self.setting}.timeout_s)"
                if failures > server.retries:
                    return NoAnswerError(
                        f"{url} gave no usable response in {failures} attempts; last error: {why}"
                    )
            except httpx.TransportError as error:
                down_since = down_since or time.monotonic()
                left = down_since + server.max_wait_s - time.monotonic()
                why = str(error) or type(error).__name__
                if left <= 0:
                    raise ServerError(
                        f"{url} has not responded for {server.max_wait_s:g} s ({self.setting}.max_wait_s): {why}. Start the "
                        f"server or set {self.setting}.base_url, then run the same command again to resume from the last "
                        "checkpoint"
                    ) from None
                if not self._down:
                    log.warning("%s does not respond (%s); waiting up to %.0f s", url, why, left)
                self._down = True
                pause = min(pause, left)
            else:
                if self._down:
                    log.warning("%s responds again", url)
                self._down = False
                return answer
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _json(self, response: httpx.Response) -> Any:
        """Return the JSON body of a successful response; raise an error that says what to do otherwise."""
        message = f"{response.url} responded {self._describe(response)}"
        if response.status_code in _BUSY:
            raise httpx.NetworkError(self._describe(response))
        if response.status_code in _REFUSED:
            raise RefusedError(message)
        if response.is_redirect or response.is_client_error:
            raise ServerError(
                f"{message}. Check {self.setting}.base_url, {self.setting}.model and {self.setting}.api_key_env"
            )
        if not response.is_success:
            raise ValueError(self._describe(response))
        return response.json()

    def _describe(self, response: httpx.Response) -> str:
        """Return the status and the beginning of the text, with the API key masked, because some servers repeat it."""
        text = " ".join(response.text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return f"{response.status_code} {response.reason_phrase}: {text[:200]}"


def _check(server: Server, key: str) -> None:
    for name, least in (("timeout_s", 0.001), ("max_wait_s", 0), ("retries", 0), ("concurrency", 1)):
        if not getattr(server, name) >= least:
            raise ValueError(f"{key}.{name} is {getattr(server, name)}; it must be at least {least}")
    check_server_url(server.base_url, f"{key}.base_url")
