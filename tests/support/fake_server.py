"""A server on 127.0.0.1 with answers from the test: late, busy, invalid or correct."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeServer:
    """Answers of the server, and a record of its requests.

    Args:
        answer: Function from a request's number and JSON body to the status and content of the answer.
        port: Port to listen on; 0 takes a free one.
    """

    answer: Callable[[int, dict[str, Any]], tuple[int, Any]]
    port: int = 0
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Serve until the end of the block, on ``fake.port`` if it is not 0."""
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(fake.requests)
                fake.requests.append((self.path, body, dict(self.headers)))
                at_once += 1
                fake.most_at_once = max(fake.most_at_once, at_once)
            status, content = fake.answer(number, body)
            with lock:
                at_once -= 1
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has stopped waiting
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", fake.port), Handler)
    server.daemon_threads = True
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def embed_letters(texts: list[str]) -> dict[str, Any]:
    """Return an embeddings answer with counts of a, b and c, last text first: only ``index`` gives the right order."""
    rows = [
        {"index": place, "embedding": [text.count(letter) for letter in "abc"]}
        for place, text in enumerate(texts)
    ]
    return {"data": rows[::-1]}


def say(text: Any) -> dict[str, Any]:
    """Return the JSON of a chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}
