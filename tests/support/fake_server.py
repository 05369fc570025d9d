"""A server on 127.0.0.1 with answers from the test: late, busy, invalid or correct."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from support import http


@dataclass
class FakeServer:
    """Answers of the server, and a record of its requests.

    Args:
        answer: Function from a request's number and JSON body to the status and content of the answer.
        port: Port to listen on; 0 takes a free one.
    """

    answer: Callable[[int, dict[str, Any]], tuple[int, Any]]
    port: int = 0
    requests: list[tuple[str, dict[str, Any], Mapping[str, str]]] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Serve until the end of the block, on ``fake.port`` if it is not 0."""
    at_once, lock = http.AtOnce(), threading.Lock()

    def handle(path: str, body: dict[str, Any], headers: Mapping[str, str]) -> tuple[int, Any]:
        with at_once.counted():
            with lock:
                number = len(fake.requests)
                fake.requests.append((path, body, headers))
            answer = fake.answer(number, body)
        fake.most_at_once = at_once.most
        return answer

    with http.serving(handle, fake.port) as fake.port:
        yield fake


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
