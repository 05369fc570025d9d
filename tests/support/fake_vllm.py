"""A fake vLLM that records its inputs and computes its outputs from them. Slow tests cover the real engine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import vllm_engine


class EngineDeadError(Exception):
    """vLLM's error for a dead engine."""


class FakeLLM:
    """Fake engine with a context of 64 tokens. A completion consists of the prompt's first token and the request's seed.

    Args:
        **arguments: Arguments of the engine, which the attribute ``arguments`` records.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.model_config = SimpleNamespace(
            dtype=torch.bfloat16,
            max_model_len=64,
            enable_sleep_mode=arguments.get("enable_sleep_mode", False),
        )
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))
        self.calls: list[tuple[Any, ...]] = []
        self.params: list[Any] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.files: list[Path] = []
        self.digests: list[str] | None = None  # reported by the workers instead of the real ones
        self.lora_request: Any = None  # of the last generation
        self.adapters: dict[str, torch.Tensor] = {}
        self.adapter_config: dict[str, Any] = {}
        self.refusal = ""  # why the workers refuse adapters
        self.failure: BaseException | None = None
        self.drops_prefixes = True

    def generate(
        self, prompts: Sequence[Any], params: Any, use_tqdm: bool, lora_request: Any = None
    ) -> list[Any]:
        assert not use_tqdm
        self.lora_request = lora_request
        self.calls.append(("generate", *(tuple(prompt["prompt_token_ids"]) for prompt in prompts)))
        if self.failure is not None:
            raise self.failure
        self.params = list(params)
        return [self._output(p["prompt_token_ids"], one) for p, one in zip(prompts, self.params, strict=True)]

    def _output(self, prompt: list[int], params: Any) -> Any:
        def row(token: int) -> dict[int, Any]:
            return {token + 1: SimpleNamespace(logprob=9.0), token: SimpleNamespace(logprob=-token / 8)}

        seed = params.kept.get("seed", 0)
        tokens = [prompt[0], seed]
        sample = SimpleNamespace(
            token_ids=tokens,
            logprobs=[row(token) for token in tokens],
            finish_reason={0: "stop", 1: "length"}.get(seed, "abort"),
        )
        return SimpleNamespace(outputs=[sample], prompt_logprobs=[None, *map(row, prompt[1:])])

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        self.calls.append((method, *args))
        if self.failure is not None:
            raise self.failure
        if method == "load_adapters":
            self.files = [
                Path(args[0]) / name for name in ("adapter_model.safetensors", "adapter_config.json")
            ]
            self.adapters = load_file(self.files[0])
            self.adapter_config = json.loads(self.files[1].read_text())
            digests = self.digests or [_digest(self.adapters)] * 2
            return [(digest, self.refusal) for digest in digests]
        if method != "load_weight_files":
            return [None, None]
        self.files = [Path(path) for path in args[1]]
        for file in self.files:
            self.weights |= load_file(file)
        return self.digests or [_digest(self.weights)] * 2

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", *tags))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache",))
        return self.drops_prefixes

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in tensors.items())


class LoRARequest(NamedTuple):
    """Fake ``LoRARequest`` of vLLM."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class Params:
    """Fake ``SamplingParams`` of vLLM that records its arguments."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept


class Inline:
    """Fake ``EngineProcess`` that runs each call at once, and records its name and time limit."""

    pid = 4711

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.alive = False
        self.environment: dict[str, str] = {}

    def start(self, load: Callable[[], Any], timeout_s: float) -> Any:
        self.calls.append(("start", timeout_s))
        self.environment = dict(os.environ)
        result, self.alive = load(), True
        return result

    def call(self, what: str, call: Callable[[], Any], timeout_s: float) -> Any:
        self.calls.append((what, timeout_s))
        return call()

    def end(self, shutdown: Callable[[], None] | None = None) -> None:
        if shutdown is not None and self.alive:
            shutdown()
        self.alive = False


class FakeVLLM:
    """Replace the package vLLM by a fake one, and record all started engines.

    Args:
        monkeypatch: Fixture of the test, which restores the package.
        on_cpu: Whether the fake is vLLM for CPUs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on_cpu: bool = True) -> None:
        self.llms: list[FakeLLM] = []
        self.processes: list[Inline] = []
        self.on_cpu = on_cpu
        self.starts_with_adapters = True
        platform = SimpleNamespace(is_cpu=lambda: self.on_cpu)
        parts: dict[str, dict[str, Any]] = {
            "vllm": {"LLM": self._start, "SamplingParams": Params, "TokensPrompt": dict},
            "vllm.platforms": {"current_platform": platform},
            "vllm.lora.request": {"LoRARequest": LoRARequest},
            "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
        }
        for name, content in parts.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(vllm_engine, "EngineProcess", self._watch)

    @property
    def llm(self) -> FakeLLM:
        """The engine that was started last."""
        return self.llms[-1]

    @property
    def process(self) -> Inline:
        """The process of the engine that was started last."""
        return self.processes[-1]

    def _start(self, **arguments: Any) -> FakeLLM:
        if arguments.get("enable_lora") and not self.starts_with_adapters:
            raise RuntimeError("this architecture has no LoRA")
        self.llms.append(FakeLLM(**arguments))
        return self.llm

    def _watch(self) -> Inline:
        self.processes.append(Inline())
        return self.process
