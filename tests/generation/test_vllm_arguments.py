"""What the generator hands to vLLM, and what it makes of the answers; vLLM itself is a stand-in."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import Generator, VLLMGenerator
from rwml_lightning.generation.vllm_setup import ENVIRONMENT, check_positions
from rwml_lightning.generation.vllm_worker import WorkerExtension
from rwml_lightning.schema import Completion, Sampling
from support.fake_vllm import EngineDeadError, FakeVLLM

TENSORS = {"a.0.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
WORKER = f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVLLM:
    return FakeVLLM(monkeypatch)


@pytest.fixture
def started(vllm: FakeVLLM, tiny_model: Path) -> VLLMGenerator:
    generator = VLLMGenerator(str(tiny_model), startup_timeout_s=3.0, request_timeout_s=7.0)
    generator.start()
    return generator


FIXED = {
    "enable_prefix_caching": True,
    "logprobs_mode": "processed_logprobs",
    "worker_extension_cls": WORKER,
    "use_tqdm_on_load": False,
    "load_format": "safetensors",
    "trust_remote_code": False,
}
DEFAULTS = {
    "tensor_parallel_size": 1,
    "max_model_len": None,
    "gpu_memory_utilization": 0.4,
    "max_num_seqs": 128,
    "block_size": None,
    "enforce_eager": False,
    "enable_sleep_mode": False,
    "seed": 0,
}
OTHERS = {
    "tensor_parallel_size": 2,
    "max_model_len": 48,
    "gpu_memory_utilization": 0.7,
    "max_num_seqs": 9,
    "block_size": 32,
    "enforce_eager": True,
    "enable_sleep_mode": True,
    "seed": 5,
}
GIB = 2**30


@pytest.mark.parametrize(
    ("on_cpu", "given", "handed_on"),
    [
        (True, {}, {"dtype": "float32", "kv_cache_memory_bytes": 2 * GIB}),
        (True, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "kv_cache_memory_bytes": 2 * GIB}),
        (True, {"kv_cache_gib": 0.5}, {"dtype": "float32", "kv_cache_memory_bytes": GIB // 2}),
        (False, {}, {"dtype": "auto", "kv_cache_memory_bytes": None}),
        (False, {"kv_cache_gib": 0.5, "dtype": "float16"}, {"dtype": "float16", "kv_cache_memory_bytes": GIB // 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("settings", [DEFAULTS, OTHERS])
def test_settings_reach_the_engine(
    vllm: FakeVLLM,
    tiny_model: Path,
    on_cpu: bool,
    given: dict[str, Any],
    handed_on: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    vllm.on_cpu = on_cpu
    own = {name: value for name, value in settings.items() if value != DEFAULTS[name]}
    VLLMGenerator(str(tiny_model), **own, **given).start()
    expected = {"model": str(tiny_model), **settings, **handed_on, **FIXED}
    on_cpu_only = {"enable_chunked_prefill": False, "enable_sleep_mode": False} if on_cpu else {}
    assert vllm.llm.arguments == expected | on_cpu_only
    module, _, name = WORKER.rpartition(".")
    assert hasattr(getattr(importlib.import_module(module), name), "load_weight_files")


def test_a_start_has_its_time_and_is_one(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    started.start()
    assert len(vllm.llms) == len(vllm.processes) == 1
    assert [seconds for _, seconds in vllm.process.calls] == [3.0, 7.0]
    assert vllm.llm.calls == [("end_with", os.getpid(), vllm.process.pid)]
    assert started.weights_dtype == "bfloat16"  # the engine's own
    assert isinstance(started, Generator)
    defaults = VLLMGenerator()
    assert (defaults.startup_timeout_s, defaults.request_timeout_s) == (900, 1800)
    assert (defaults.policy_version, defaults.weights_digest, defaults.max_model_len) == (0, None, None)


def test_the_engine_alone_sees_the_environment_it_needs(
    vllm: FakeVLLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    before = dict(os.environ)
    VLLMGenerator(str(tiny_model)).start()
    assert vllm.process.environment == before | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert dict(os.environ) == before


def test_a_model_is_asked_for(vllm: FakeVLLM) -> None:
    with pytest.raises(ValueError, match=r"VLLMGenerator has no model: set model"):
        VLLMGenerator().start()
    assert not vllm.processes


@pytest.mark.parametrize(
    ("missing", "error"), [("vllm", ValueError), ("vllm.platforms", ModuleNotFoundError)]
)
def test_only_a_missing_vllm_is_called_that(
    vllm: FakeVLLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, missing: str, error: type[Exception]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(error, match=r"VLLMGenerator needs vLLM" if missing == "vllm" else r"vllm\.platforms"):
        VLLMGenerator(str(tiny_model)).start()


def dynamic_rope(**more: int) -> LlamaConfig:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, **more}
    return LlamaConfig(max_position_embeddings=64, rope_parameters=rope)


def test_a_context_that_changes_all_positions_is_refused(
    vllm: FakeVLLM, tiny_model: Path, tmp_path: Path
) -> None:
    for fits in (63, 64):
        check_positions(dynamic_rope(), fits)
    for any_length in (None, 999):
        check_positions(LlamaConfig(max_position_embeddings=64), any_length)
    for given, said in ((None, "not set"), (65, "65")):
        with pytest.raises(ValueError, match=rf"^max_model_len is {said}; .* max_position_embeddings of 64"):
            check_positions(dynamic_rope(), given)
    check_positions(dynamic_rope(max_trained_positions=64), 64)
    with pytest.raises(
        ValueError, match="vLLM scales all positions of this model by its max_trained_positions of 32"
    ):
        check_positions(dynamic_rope(max_trained_positions=32), 64)
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    written = config | {"rope_parameters": dynamic_rope().rope_parameters}
    (tmp_path / "model" / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="max_model_len is 257; in"):  # before anything is loaded
        VLLMGenerator(str(tmp_path / "model"), max_model_len=257).start()
    assert not vllm.processes


@pytest.mark.parametrize("ends", [None, (5, 9), ()])
def test_requests_say_how_to_sample(vllm: FakeVLLM, tiny_model: Path, ends: tuple[int, ...] | None) -> None:
    generator = VLLMGenerator(str(tiny_model), end_token_ids=ends)
    generator.generate([[7]], Sampling(11, temperature=0.7, top_p=0.9), [[3, 4]])
    own = json.loads((tiny_model / "config.json").read_text())["eos_token_id"]
    assert [params.kept for params in vllm.llm.params] == [
        {
            "max_tokens": 11,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": [own] if ends is None else list(ends),
            "ignore_eos": True,
            "detokenize": False,
        }
        for seed in (3, 4)
    ]


def test_completions_are_those_of_their_prompt_and_seed(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    started.policy_version = 6
    prompts, seeds = [[8, 1], [16], [24, 2, 3]], [[0, 1], [], [2]]
    assert started.generate(prompts, Sampling(4), seeds) == [
        [Completion((8, 0), (-1.0, 0.0), "stop", 6), Completion((8, 1), (-1.0, -0.125), "length", 6)],
        [],
        [Completion((24, 2), (-3.0, -0.25), "length", 6)],
    ]
    assert vllm.llm.calls[-1] == ("generate", (8, 1), (8, 1), (24, 2, 3))
    assert vllm.process.calls[-1] == ("generate", 7.0)
    num_calls = len(vllm.llm.calls)
    assert started.generate([[8]], Sampling(4), [[]]) == [[]]
    assert started.generate([], Sampling(4), []) == []
    assert len(vllm.llm.calls) == num_calls  # nothing asked, nothing sent


def test_the_engine_s_own_context_bounds_a_request(started: VLLMGenerator) -> None:
    assert len(started.generate([[1] * 60], Sampling(4), [[0]])) == 1
    with pytest.raises(ValueError, match=r"prompt 0 has 61 tokens; .* the context of 64"):
        started.generate([[1] * 61], Sampling(4), [[0]])


def test_scores_are_of_all_tokens_but_the_first(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    assert started.score([[8, 16, 24], [4, 2]]) == [[-2.0, -3.0], [-0.25]]
    assert [p.kept for p in vllm.llm.params] == [
        {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
    ] * 2
    assert vllm.process.calls[-1] == ("score", 7.0)
    assert vllm.llm.calls[-1] == ("generate", (8, 16, 24), (4, 2))


def test_new_weights_reach_the_workers_and_old_prefixes_go(
    started: VLLMGenerator, vllm: FakeVLLM, tiny_model: Path
) -> None:
    vllm.llm.calls.clear()
    started.update_weights(TENSORS.items(), version=3)
    files = [str(file) for file in vllm.llm.files]
    assert vllm.llm.calls == [("load_weight_files", str(tiny_model), files), ("reset_prefix_cache",)]
    assert vllm.process.calls[-2:] == [("update_weights", 7.0), ("reset_prefix_cache", 7.0)]
    assert vllm.llm.weights.keys() == TENSORS.keys()
    assert all(torch.equal(vllm.llm.weights[name], tensor) for name, tensor in TENSORS.items())
    assert not any(file.exists() for file in vllm.llm.files)
    assert started.weights_digest == combine_digests(tensor_digest(*named) for named in TENSORS.items())
    assert started.policy_version == 3


@pytest.mark.parametrize(("on_cpu", "enabled"), [(False, True), (False, False), (True, True)])
def test_the_engine_sleeps_until_the_next_weights(
    vllm: FakeVLLM, tiny_model: Path, on_cpu: bool, enabled: bool
) -> None:
    vllm.on_cpu = on_cpu
    generator = VLLMGenerator(str(tiny_model), enable_sleep_mode=enabled)
    generator.sleep()  # an engine that has not started has no memory to free
    assert not vllm.llms
    generator.update_weights(TENSORS.items(), version=1)
    sleeps = enabled and not on_cpu
    assert vllm.llm.arguments["enable_sleep_mode"] == sleeps
    vllm.llm.calls.clear()
    generator.sleep()
    generator.sleep()
    assert vllm.llm.calls == ([("sleep", 2)] if sleeps else [])
    assert (generator.weights_digest is None) == sleeps  # so that they are sent again
    assert (generator.base_digest is None) == sleeps
    vllm.llm.calls.clear()
    generator.update_weights(TENSORS.items(), version=2)
    names = [call[:2] if call[0] == "wake_up" else call[:1] for call in vllm.llm.calls]
    awake = [("wake_up", "weights"), ("load_weight_files",), ("wake_up", "kv_cache"), ("reset_prefix_cache",)]
    assert names == (awake if sleeps else awake[1::2])
    generator.sleep()
    generator.close()
    generator.start()
    assert not generator.asleep


def fail(vllm: FakeVLLM, how: str) -> None:
    if how == "the workers differ":
        vllm.llm.digests = ["a", "b"]
    elif how == "prefixes stay":
        vllm.llm.drops_prefixes = False
    else:
        vllm.llm.failure = KeyError(how)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (
            "the workers differ",
            RuntimeError,
            "workers did not all take the same weights; the engine was ended",
        ),
        ("prefixes stay", RuntimeError, "vLLM did not drop its prefix cache; the engine was ended"),
        ("no layer", KeyError, "no layer"),
    ],
)
def test_an_update_that_fails_leaves_no_engine(
    started: VLLMGenerator, vllm: FakeVLLM, how: str, error: type[Exception], message: str
) -> None:
    started.update_weights(TENSORS.items(), version=1)
    process, llm = vllm.process, vllm.llm
    fail(vllm, how)
    with pytest.raises(error, match=message):
        started.update_weights(TENSORS.items(), version=2)
    assert not process.alive
    assert llm.calls[-1] == ("shutdown",)
    assert (started.policy_version, started.weights_digest) == (1, None)
    started.generate([[1]], Sampling(2), [[0]])
    assert len(vllm.llms) == 2  # a new engine, which does not have the weights


def test_tensors_that_cannot_be_had_end_the_engine(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    def broken() -> Any:
        yield from TENSORS.items()
        raise OSError("no such tensor")

    with pytest.raises(OSError, match="no such tensor"):
        started.update_weights(broken(), version=1)
    assert not vllm.process.alive


def test_an_engine_that_died_is_named_and_replaced(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    process = vllm.process
    vllm.llm.failure = EngineDeadError()
    with pytest.raises(
        RuntimeError, match=r"the vLLM engine failed during score; its error messages are above"
    ):
        started.score([[1, 2]])
    assert not process.alive
    assert started.score([[8, 16]]) == [[-2.0]]
    assert len(vllm.llms) == 2


def test_an_error_of_one_call_keeps_the_engine(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    vllm.llm.failure = ValueError("this request alone")
    with pytest.raises(ValueError, match="this request alone"):
        started.generate([[1]], Sampling(2), [[0]])
    vllm.llm.failure = None
    started.generate([[1]], Sampling(2), [[0]])
    assert len(vllm.llms) == 1


def test_an_engine_is_shut_down_once_and_may_start_again(started: VLLMGenerator, vllm: FakeVLLM) -> None:
    started.update_weights(TENSORS.items(), version=1)
    started.close()
    started.close()
    assert not vllm.process.alive
    assert vllm.llm.calls.count(("shutdown",)) == 1
    assert started.weights_digest is None
    VLLMGenerator().close()  # never started
    started.start()
    assert len(vllm.llms) == 2
