"""The page from outside: what other pages, other names, other users and earlier tokens get from it, which is nothing."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from rwml_tui.serve import serve

from rwml_lightning.trace import TraceReader, TraceWriter
from support.dashboard import Served, make_group, serving
from support.http import free_port

pytestmark = pytest.mark.heavy

ELSEWHERE = "https://elsewhere.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with TraceWriter(folder / "first [bold] \x1b]0;t\x07" / "trace.db") as writer:
        writer.start_stage("wm_grpo", 9, "")
        writer.write_step("wm_grpo", 0, {"wm/reward": 0.5}, [make_group(0)])
    with serving(writer.path.parent, folder / "log", free_port()) as page:
        yield page


def commands(page: Served) -> list[str]:
    (trace,) = page.log.parent.glob("first*/trace.db")
    with TraceReader(trace) as reader:
        return [command.command for command in reader.commands()]


def get(
    page: Served, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, str, Mapping[str, str]]:
    async def ask() -> tuple[int, str, Mapping[str, str]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{page.origin}{path}", headers=headers, allow_redirects=False) as response,
        ):
            return response.status, await response.text(errors="replace"), response.headers

    return asyncio.run(ask())


async def stop_the_run(page: Served, headers: Mapping[str, str], path: str = "/ws") -> bool:
    """What a page elsewhere did: open a websocket, wait for the dashboard, and press keys; whether it opened."""
    async with aiohttp.ClientSession() as session:
        try:
            channel = await session.ws_connect(f"{page.origin}{path}", headers=headers)
        except aiohttp.WSServerHandshakeError as error:
            if error.status != 403:
                raise
            return False
        seen = b""
        while b"groups" not in seen:
            message = await channel.receive(timeout=60)
            assert message.type == aiohttp.WSMsgType.BINARY, message
            seen += message.data
        for key in ("c", "\x1b[B", "\x1b[B", "\x1b[B", "\r", "\r"):
            await channel.send_str(json.dumps(["stdin", key]))
            await asyncio.sleep(0.5)
        for _ in range(100):
            if commands(page):
                break
            await asyncio.sleep(0.1)
        await channel.close()
    return True


ENTERS = {
    "wrong host": {"Host": "elsewhere.example:{port}"},
    "host without port": {"Host": "127.0.0.1"},
    "another port": {"Host": "127.0.0.1:1"},
    "name that begins alike": {"Host": "127.0.0.1:{port}.elsewhere.example"},
    "foreign origin": {"Origin": ELSEWHERE},
    "null origin": {"Origin": "null"},
    "another port's origin": {"Origin": "http://127.0.0.1:1"},
    "origin of another scheme": {"Origin": "https://127.0.0.1:{port}"},
    "no token": {"Cookie": ""},
    "wrong token": {"Cookie": "rwml-tui-{port}=x"},
    "another page's token": {"Cookie": "rwml-tui={token}"},
    "token that is no text": {"Cookie": "rwml-tui-{port}=\udcff"},
}


@pytest.mark.parametrize("changed", ENTERS.values(), ids=ENTERS)
def test_a_stranger_gets_nothing(served: Served, changed: Mapping[str, str]) -> None:
    given = {name: value.format(port=served.port, token=served.token) for name, value in changed.items()}
    headers = {"Cookie": served.cookie, "Origin": served.origin, **given}
    for path in ("/", "/static/js/textual.js", "/static/", "/download/x", "/no/such/path"):
        status, body, _ = get(served, path, headers)
        assert status == 403, path
        assert body.startswith("rwml-tui: ")
        assert body.count("\n") == 1
        assert served.token not in body
    assert not asyncio.run(stop_the_run(served, headers))
    assert commands(served) == []


@pytest.mark.parametrize(
    "place", ["/ws?token={token}", "/static/js/textual.js?token={token}", "/?token=x", "/?token="]
)
def test_a_token_counts_in_the_printed_address_alone(served: Served, place: str) -> None:
    path = place.format(token=served.token)
    assert get(served, path)[0] == 403


def test_a_websocket_without_an_origin_does_not_open(served: Served) -> None:
    assert not asyncio.run(stop_the_run(served, {"Cookie": served.cookie}))
    assert commands(served) == []


def test_the_printed_address_opens_the_dashboard(served: Served) -> None:
    status, body, headers = get(served, f"/?token={served.token}")
    assert status == 200
    assert 'http-equiv="refresh"' in body
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(served.cookie)
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    status, body, headers = get(served, "/", {"Cookie": served.cookie})
    assert status == 200
    assert served.token not in body
    assert "Set-Cookie" not in headers
    for name in ("localhost", "[::1]"):
        host = f"{name}:{served.port}"
        status, body, _ = get(served, "/", {"Cookie": served.cookie, "Host": host})
        assert status == 200
        assert f'"ws://{host}/ws"' in body
    assert asyncio.run(stop_the_run(served, {"Cookie": served.cookie, "Origin": served.origin}))
    assert commands(served) == ["stop"]  # so that the keys of strangers would have been heard above
    assert "\x1b" not in served.log.read_text()


def test_the_page_and_what_it_loads_name_no_other_host(served: Served) -> None:
    paths, known = ["/"], set()
    while paths:
        path = paths.pop()
        known.add(path)
        status, body, headers = get(served, path, {"Cookie": served.cookie})
        assert status == 200, path
        policy = headers["Content-Security-Policy"]
        for words in (
            "default-src 'none'",
            "script-src 'self';",
            "frame-ancestors 'none'",
            "font-src 'self';",
        ):
            assert words in policy
        assert not re.search(r"https?:|\*|unsafe-eval", policy)
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        code = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL) if path.endswith((".css", ".js")) else body
        if not path.endswith(".ttf"):
            assert not re.search(r"""["'(=]\s*(https?:)?//[\w-]+\.""", code), path
        found = re.findall(
            r"""(?:src|href)="([^"]+)"|url\(["']?([^"')]+)""", code if path.endswith(("/", ".css")) else ""
        )
        paths += [
            one for pair in found for one in pair if one and one not in known and not one.startswith("data:")
        ]
    assert {"/static/css/xterm.css", "/static/js/textual.js"} < known
    assert any(path.endswith(".ttf") for path in known)


def test_the_token_of_an_earlier_start_is_of_no_use(run: Path, tmp_path: Path) -> None:
    port = free_port()
    with serving(run, tmp_path / "first.log", port) as first:
        assert get(first, "/", {"Cookie": first.cookie})[0] == 200
    with serving(run, tmp_path / "second.log", port) as second:
        assert second.token != first.token
        assert get(second, "/", {"Cookie": first.cookie})[0] == 403
        assert get(second, f"/?token={first.token}")[0] == 403
        assert get(second, "/", {"Cookie": second.cookie})[0] == 200


def test_only_this_machine_is_listened_to(served: Served) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", served.port)) != 0


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert serve(["x"], None, port) == 1
    error = capsys.readouterr().err
    assert f"port {port} cannot be used" in error
    assert error.count("\n") == 1
