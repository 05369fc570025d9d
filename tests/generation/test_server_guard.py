"""The middleware that asks for the API key on every path of a vLLM server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rwml_lightning.generation.servers.guard import RequireKey


def status(path: str, headers: list[tuple[bytes, bytes]], kind: str = "http") -> Any:
    """What a request gets; the application itself answers "served"."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append("served")

    async def send(message: Any) -> None:
        sent.append(message.get("status", message.get("code")))

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(RequireKey(app)({"type": kind, "path": path, "headers": headers}, receive, send))
    return sent[0]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-right")


@pytest.mark.parametrize("path", ["/collective_rpc", "/update_weights", "/v1/completions", "/version"])
def test_every_path_needs_the_key(path: str) -> None:
    assert status(path, []) == 401
    assert status(path, [(b"authorization", b"Bearer sk-wrong")]) == 401
    assert status(path, [(b"authorization", b"Bearer sk-right")]) == "served"


def test_health_is_open_and_websockets_are_closed() -> None:
    assert status("/health", []) == "served"
    assert status("/v1/realtime", [], "websocket") == 1008


def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(KeyError, match="VLLM_API_KEY"):
        status("/health", [])
