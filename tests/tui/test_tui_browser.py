"""The dashboard as a page, in a real browser; skips where Debian's chromium is missing."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from support.dashboard import Served, serving
from support.http import free_port

CHROMIUM = shutil.which("chromium")


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a log, ended with what it started."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(20)


async def answer(url: str, seconds: float = 30) -> Any:
    """JSON or text of an address that may not be there yet."""
    async with aiohttp.ClientSession() as session:
        for _ in range(int(seconds / 0.2)):
            try:
                async with session.get(url) as response:
                    return await response.json() if "json" in response.content_type else await response.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.2)
    raise AssertionError(f"{url} did not answer in {seconds} s")


class Page:
    """A tab, steered over Chrome's debugging protocol."""

    def __init__(self, channel: aiohttp.ClientWebSocketResponse) -> None:
        self.channel = channel
        self._number = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self.channel.send_json({"id": self._number, "method": method, "params": parameters})
        while (message := await self.channel.receive_json(timeout=30)).get("id") != self._number:
            self.events.append(message)
        return message["result"]

    async def picture(self, path: Path) -> np.ndarray:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), dtype=float)

    async def click(self, x: int, y: int) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[Page]:
    tabs = await answer(f"http://127.0.0.1:{port}/json")
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as channel:
        yield Page(channel)


def detail(picture: np.ndarray) -> float:
    """Share of neighbouring pixels that differ: text has many."""
    return float((np.abs(np.diff(picture, axis=1)) > 30).mean())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)")
def test_a_page_shows_the_dashboard_and_hears_keys(run: Path, tmp_path: Path) -> None:
    page_port, debug_port = free_port(), free_port()
    browser = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800",
        f"--remote-debugging-port={debug_port}", f"--user-data-dir={tmp_path / 'profile'}",
        "about:blank",
    ]  # fmt: skip

    async def session(served: Served) -> None:
        with running(browser, tmp_path / "browser.log"):
            async with opened(debug_port) as page:
                for domain in ("Log", "Network"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=f"{served.origin}/?token={served.token}")
                for _ in range(60):
                    await asyncio.sleep(0.5)
                    first = await page.picture(tmp_path / "page.png")
                    if detail(first) > 0.02:
                        break
                else:
                    raise AssertionError("half a minute passed without a dashboard")
                await asyncio.sleep(1)
                first = await page.picture(tmp_path / "page.png")
                await page.click(300, 130)
                await page.press("2")
                for _ in range(20):
                    await asyncio.sleep(0.5)
                    second = await page.picture(tmp_path / "curves.png")
                    if np.abs(first - second).mean() > 1:
                        break
                else:
                    raise AssertionError("ten seconds passed without another tab")
                asked = [
                    e["params"]["request"]["url"]
                    for e in page.events
                    if e.get("method") == "Network.requestWillBeSent"
                ]
                assert any(url.endswith(".ttf") for url in asked)
                assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{page_port}"}
                entries = [e["params"]["entry"] for e in page.events if e.get("method") == "Log.entryAdded"]
                assert not [one for one in entries if one["source"] == "security" or "Policy" in one["text"]]
                where = await page.call("Runtime.evaluate", expression="location.href")
                assert where["result"]["value"] == f"{served.origin}/"  # the token is not left in the address
                os.kill(served.pid, 9)  # it ends without a word to the dashboard that it shows
                await asyncio.to_thread(wait_for_end, served.pid)

    with serving(run, tmp_path / "serve.log", page_port) as served:
        asyncio.run(asyncio.wait_for(session(served), 240))


def wait_for_end(group: int, seconds: float = 15) -> None:
    """Until no process of the group is left but those that only wait to be collected."""
    for _ in range(int(seconds / 0.2)):
        listed = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True)
        if not [line for line in listed.stdout.split() if not line.startswith("Z")]:
            return
        time.sleep(0.2)
    raise AssertionError(f"processes of group {group} go on after {seconds} s")
