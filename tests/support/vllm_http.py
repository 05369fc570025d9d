"""The HTTP interface of a vLLM server that takes weights, without a model: its completions are a formula of their request.

The weights are really received, over the library's own channel.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation.servers.transfer import Meeting
from support import http

Hook = Callable[[str, dict[str, Any]], tuple[int, Any] | None]


@dataclass
class VLLMHttp:
    """One server: its description, what it has received, and what a test lets happen.

    Args:
        description: Answer of the workers to ``describe``.
        hook: Function from path and body to an answer that replaces the server's own; ``None`` keeps that.
        port: Port; 0 takes a free one.
    """

    description: dict[str, Any]
    hook: Hook = lambda path, body: None
    port: int = 0
    version: Any = field(default_factory=lambda: {"version": "0.32.0"})
    requests: list[tuple[str, dict[str, Any], Mapping[str, str]]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    most_at_once: int = 0
    process: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def prompts(self) -> list[list[int]]:
        """Prompts of the completions that were asked for, in the order of their arrival."""
        return [body["prompt"] for path, body, _ in self.requests if path == "/v1/completions"]

    def begin(self) -> None:
        """Start as a new process, with the weights of the model folder."""
        self.process, self.tensors = uuid.uuid4().hex, {}
        self.digest: str | None = None
        self.channel: Any = None

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/version":
            return 200, self.version
        if path == "/v1/models":
            return 200, {"data": [{"id": "served"}]}
        if path == "/collective_rpc":
            return 200, {
                "results": [{**self.description, "process": self.process, "digest": self.digest, "updating": False}]
            }  # fmt: skip
        if path == "/init_weight_transfer_engine":
            self.channel = Meeting(**body["init_info"]).join(1)
        elif path == "/start_weight_update":
            self.digest = "incomplete"
        elif path == "/update_weights":
            self.tensors = dict(self._receive(**body["update_info"]))
        elif path == "/finish_weight_update":
            self.digest = combine_digests(tensor_digest(n, t) for n, t in self.tensors.items())
        elif path == "/reset_prefix_cache":
            return 200, {"success": True}
        elif path == "/v1/completions":
            return 200, {"choices": [completion(body)]}
        return 200, {}

    def _receive(
        self, names: list[str], dtypes: list[str], shapes: list[list[int]]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(names, dtypes, shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self.channel.broadcast(tensor)
            yield name, tensor


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """Return the completion of a request: tokens that depend on prompt and seed, and their log-probabilities."""
    first = sum(body["prompt"]) + 10 * body.get("seed", 0)
    tokens = [(first + place) % 97 for place in range(body["max_tokens"])]
    found: dict[str, Any] = {"token_ids": tokens, "finish_reason": "length"}
    found["logprobs"] = {"token_logprobs": [-token / 8 for token in tokens]}
    if "prompt_logprobs" in body:
        found["prompt_logprobs"] = [None, *({str(t): {"logprob": -t / 4}} for t in body["prompt"][1:])]
    return found


@contextlib.contextmanager
def serving(fake: VLLMHttp) -> Iterator[VLLMHttp]:
    """Serve until the end of the block."""
    at_once = http.AtOnce()

    def handle(path: str, body: dict[str, Any], headers: Mapping[str, str]) -> tuple[int, Any]:
        fake.requests.append((path, body, headers))
        with at_once.counted() if path == "/v1/completions" else contextlib.nullcontext():
            try:
                answer = fake.hook(path, body) or fake.answer(path, body)
            except Exception as error:
                answer = 500, {"error": str(error)}
        fake.most_at_once = at_once.most
        return answer

    fake.begin()
    with http.serving(handle, fake.port) as fake.port:
        yield fake


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
