"""HTTP client of one vLLM server. No call waits longer than its time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from rwml_lightning.generation.servers.check import Need

CONTROL_S = 20.0
"""Time limit in seconds for questions that an idle engine answers at once."""
_BUSY = (429, 503)
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0


class ServerFaultError(ConnectionError):
    """A server does not respond, or responds that it has failed. Another server can do its work."""


class BusyError(ServerFaultError):
    """A server has too many requests."""


class UnreadableError(ServerFaultError):
    """A response is not JSON."""


class RefusedError(ValueError):
    """A server refuses a request, and every other server would."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServerClient:
    """Sends requests to one server.

    Args:
        url: Address without ``/v1``.
        key: API key, which no message shows.
        connections: Maximum number of connections.
    """

    def __init__(self, url: str, key: str | None, connections: int) -> None:
        self.url = url
        self._key = key
        self._model: str | None = None
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONTROL_S / 2),
            limits=httpx.Limits(max_connections=connections),
        )

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        """Send a request and return the JSON of the response, ``None`` if it is empty.

        Args:
            method: ``GET`` or ``POST``.
            path: Path from the root of the server.
            body: JSON of the request.
            timeout_s: Time limit in seconds; default: :data:`CONTROL_S`.

        Raises:
            ServerFaultError: There is no response within the time limit, or the server failed.
            RefusedError: The server refuses the request.
        """
        limit = CONTROL_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await self._http.request(method, path, json=body)
            status = response.status_code
            if status in _BUSY:
                raise BusyError(self._describe(response))
            if status >= 500:
                raise ServerFaultError(self._describe(response))
            if status >= 300:
                raise RefusedError(status, f"{self.url}{path} responded {self._describe(response)}")
            return response.json() if response.content else None
        except TimeoutError:
            raise ServerFaultError(f"no response to {path} within {limit:g} s") from None
        except httpx.TransportError as error:
            raise ServerFaultError(str(error) or type(error).__name__) from None
        except (httpx.DecodingError, JSONDecodeError):
            raise UnreadableError(f"the response to {path} is not JSON") from None

    async def complete(self, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request for one completion and return it; pause and repeat while the server is too busy."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(BusyError),
            stop=stop_after_delay(timeout_s),
            wait=wait_exponential_jitter(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
            reraise=True,
        )
        answer: dict[str, Any] = await retrying(
            self.ask, "POST", "/v1/completions", {"model": self._model, **body}, timeout_s
        )
        return answer["choices"][0]

    async def describe(self) -> dict[str, Any]:
        """Return the description that all workers give; ``digest`` is that of all workers, ``different`` if they differ."""
        answer = await self.ask("POST", "/collective_rpc", {"method": "describe"})
        workers: list[dict[str, Any]] = answer["results"]
        same = {worker["digest"] for worker in workers}
        return {**workers[0], "digest": workers[0]["digest"] if len(same) == 1 else "different"}

    async def check(self, need: Need) -> dict[str, Any]:
        """Check that this is a server that the trainer can use.

        Returns:
            Description of the server.

        Raises:
            ServerFaultError: There is no response.
            WrongServerError: The server cannot be used.
        """
        try:
            version = await self.ask("GET", "/version")
            models = await self.ask("GET", "/v1/models")
        except (RefusedError, UnreadableError) as error:
            if not isinstance(error, RefusedError) or error.status not in (401, 403):
                raise need.wrong(self.url, "is not a vLLM server") from None
            how = (
                f"does not accept the API key in {need.api_key_env}"
                if need.api_key_env
                else "needs an API key: set api_key_env"
            )
            raise need.wrong(self.url, how) from None
        if not isinstance(version, dict) or "version" not in version:
            raise need.wrong(self.url, "is not a vLLM server")
        self._model = models["data"][0]["id"]
        try:
            description = await self.describe()
        except RefusedError as error:
            if error.status != 404:
                raise
            raise need.wrong(
                self.url, "has no endpoints for a trainer (VLLM_SERVER_DEV_MODE is not 1)"
            ) from None
        except ServerFaultError as error:
            if "'describe'" not in str(error):  # vLLM names the method that a worker lacks
                raise
            raise need.wrong(
                self.url, "has no worker extension of this library (--worker-extension-cls)"
            ) from None
        need.check(self.url, description)
        return description

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _describe(self, response: httpx.Response) -> str:
        """Return the status and the beginning of the text, with the API key masked, because some servers repeat it."""
        text = " ".join(response.text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return f"{response.status_code} {response.reason_phrase}: {text[:200]}"
