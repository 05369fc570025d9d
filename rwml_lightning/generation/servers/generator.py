"""A generator with running vLLM servers, on other cards or other machines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Sequence
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

from rwml_lightning import parallel
from rwml_lightning.credentials import check_server_url, read_key
from rwml_lightning.functional import combine_digests, digesting
from rwml_lightning.generation.base import SeparateWeights, check_prompts
from rwml_lightning.generation.servers.check import Need
from rwml_lightning.generation.servers.client import ServerClient
from rwml_lightning.generation.servers.pool import Limits, Request, ServerPool
from rwml_lightning.generation.servers.sender import WeightSet
from rwml_lightning.generation.vllm_setup import check_positions
from rwml_lightning.models import causal_config, resolve_model
from rwml_lightning.models import end_token_ids as model_end_token_ids
from rwml_lightning.schema import Completion, Sampling

_T = TypeVar("_T")
_SPARE_CONNECTIONS = 8


class VLLMServerGenerator(SeparateWeights):
    """Samples with one or several running vLLM servers. Weight updates go through vLLM's own weight transfer.

    docs/scale.md has the command that starts a server. Requests are spread over the servers. A server that fails is left
    out, its requests go to the others, and it is used again when it responds and has the current weights. Rank 0 sends
    the weights: over NCCL if trainer and server have GPUs, over gloo otherwise. For servers that come back, it keeps
    a copy in the memory of its machine, in the dtype of the servers. The other ranks wait until the servers have the weights
    that they have themselves. So :meth:`update_weights` must come after a point at which no rank uses the generator, such as the
    reduction of gradients.

    Args:
        urls: Addresses of the servers, such as ``http://10.0.0.2:8000``.
        model: Model name, as in :func:`rwml_lightning.models.resolve_model`; the command line sets it to the model of
            the policy.
        api_key_env: Name of the environment variable that holds the API key of the servers.
        max_model_len: Maximum number of tokens of a prompt and its completion together; default: the limit of the
            model. Every server needs a context of this length.
        concurrency: Maximum number of concurrent requests to one server, from each rank.
        retries: Maximum number of retries of a request.
        startup_timeout_s: Maximum time in seconds to wait at the start for a server that does not respond yet.
        request_timeout_s: Time limit in seconds for one completion.
        transfer_timeout_s: Time limit in seconds for sending the weights to one server.
        outage_timeout_s: Maximum time in seconds to wait while no server can be used.
        end_token_ids: Ids of the tokens that end a completion; default: the end tokens of the model.

    Raises:
        ValueError: A limit is out of range, an address is not valid or given twice, or the API key is not set.
    """

    elsewhere = True

    def __init__(
        self,
        urls: list[str],
        model: str | None = None,
        api_key_env: str | None = None,
        max_model_len: int | None = None,
        concurrency: int = 128,
        retries: int = 5,
        startup_timeout_s: float = 0.0,
        request_timeout_s: float = 600.0,
        transfer_timeout_s: float = 600.0,
        outage_timeout_s: float = 600.0,
        end_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        if not self.urls or len(set(self.urls)) != len(self.urls):
            raise ValueError(f"urls must name at least one server, and each only once, not {urls}")
        for url in self.urls:
            check_server_url(url, "data.generator.init_args.urls")
        if concurrency < 1 or retries < 0 or min(request_timeout_s, transfer_timeout_s) <= 0:
            raise ValueError("concurrency must be at least 1, retries at least 0, and time limits above 0")
        self.model = model
        self.api_key_env = api_key_env
        self.max_model_len = max_model_len
        self.startup_timeout_s = startup_timeout_s
        self.limits = Limits(concurrency, retries, request_timeout_s, transfer_timeout_s, outage_timeout_s)
        self.end_token_ids = end_token_ids
        self.policy_version = 0
        self.weights_digest: str | None = None
        self._loop: _Loop | None = None
        self._pool: ServerPool | None = None

    def _need(self) -> Need:
        if self.model is None:
            raise ValueError("VLLMServerGenerator has no model: set model")
        return Need(self.model, self.max_model_len, self.api_key_env)

    @property
    def weights_dtype(self) -> str:
        return self._started().dtype

    def start(self) -> None:
        if self._pool is not None:
            return
        need = self._need()
        folder = resolve_model(need.model)
        check_positions(causal_config(folder), need.context)
        if self.end_token_ids is None:
            self.end_token_ids = model_end_token_ids(folder)
        key = read_key(self.api_key_env, "data.generator.init_args.api_key_env")
        self._loop = _Loop()

        async def make() -> ServerPool:
            connections = self.limits.concurrency + _SPARE_CONNECTIONS
            clients = [ServerClient(url, key, connections) for url in self.urls]
            return ServerPool(clients, need, self.limits, first=parallel.rank())

        self._pool = self._loop.run(make())
        try:
            self._loop.run(self._pool.start(self.startup_timeout_s))
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Check that all servers respond and can be used, and disconnect.

        Raises:
            ValueError: A server cannot be used. The message gives the command that starts the right one.
        """
        probe = copy(self)
        probe.start()
        probe.close()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        self.start()
        check_prompts(prompts, seeds, sampling, self._need().context)
        requests = [
            Request(self._body(prompt, sampling, seed), number)
            for number, (prompt, group) in enumerate(zip(prompts, seeds, strict=True))
            for seed in group
        ]
        answers = iter(self._run(requests))
        return [[_completion(next(answers), self.policy_version) for _ in group] for group in seeds]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        body = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        requests = [
            Request({**body, "prompt": list(sequence)}, number) for number, sequence in enumerate(sequences)
        ]
        return [
            [row[str(token)]["logprob"] for token, row in zip(sequence[1:], answer["prompt_logprobs"][1:], strict=True)]
            for sequence, answer in zip(sequences, self._run(requests), strict=True)
        ]  # fmt: skip

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        pool = self._started()
        self.weights_digest = None
        digests: list[int] = []
        copies: list[tuple[str, Tensor]] | None = [] if parallel.rank() == 0 else None
        for name, tensor in digesting(named_tensors, digests):
            if copies is not None:
                copies.append((name, tensor.detach().to("cpu", copy=True).contiguous()))
        cuda_device = torch.cuda.current_device() if torch.cuda.is_available() else None
        digest = combine_digests(digests)
        assert self._loop is not None
        self._loop.run(pool.update(WeightSet(digest, copies), cuda_device))
        self.weights_digest = digest
        self.policy_version = version

    def close(self) -> None:
        if self._loop is not None:
            if self._pool is not None:
                self._loop.run(self._pool.close())
            self._loop.close()
        self._loop = self._pool = None
        self.weights_digest = None

    def _started(self) -> ServerPool:
        self.start()
        assert self._pool is not None
        return self._pool

    def _run(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        pool = self._started()
        assert self._loop is not None
        return self._loop.run(pool.run(requests))

    def _body(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        return {
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": list(self.end_token_ids or ()),
            "ignore_eos": True,  # only the stop tokens above end a completion
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }


class _Loop:
    """An event loop in a daemon thread, so that it works in a notebook and Ctrl-C stops a call at once."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm-servers").start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def _completion(answer: dict[str, Any], version: int) -> Completion:
    return Completion(
        token_ids=tuple(answer["token_ids"]),
        logprobs=tuple(answer["logprobs"]["token_logprobs"]),
        finish_reason="stop" if answer["finish_reason"] == "stop" else "length",
        policy_version=version,
    )
