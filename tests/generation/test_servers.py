"""VLLMServerGenerator against the HTTP interface of vLLM: requests, failures, weights and wrong servers, without an engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwml_lightning import parallel
from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import ServersGoneError, VLLMServerGenerator
from rwml_lightning.generation.servers import client as server_client
from rwml_lightning.generation.servers import pool as server_pool
from rwml_lightning.generation.servers.check import describe_model
from rwml_lightning.schema import Sampling
from support.http import free_port
from support.vllm_http import VLLMHttp, completion, serving, wait_for

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12]]
SEEDS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
SAMPLING = Sampling(max_tokens=4, temperature=0.7, top_p=0.9)

Start = Callable[..., VLLMHttp]
Make = Callable[..., VLLMServerGenerator]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "WATCH_S", 0.05)


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    """Start a server; changes are those of its description."""
    with ExitStack() as stack:

        def begin(hook: Any = lambda path, body: None, port: int = 0, **changes: Any) -> VLLMHttp:
            description = {
                "takes_weights": True, "device": "cpu", "dtype": "float32", "max_model_len": 256, "world_size": 1,
                "logprobs_mode": "processed_logprobs", "chunked_prefill": False, "data_parallel_size": 1,
                "model": describe_model(str(tiny_model)),
            }  # fmt: skip
            return stack.enter_context(serving(VLLMHttp({**description, **changes}, hook, port)))

        yield begin


@pytest.fixture
def make(tiny_model: Path) -> Iterator[Make]:
    """Make a generator, which is closed at the end."""
    made: list[VLLMServerGenerator] = []

    def build(*servers: VLLMHttp, **settings: Any) -> VLLMServerGenerator:
        limits = {"outage_timeout_s": 5.0, "request_timeout_s": 20.0, "transfer_timeout_s": 20.0}
        made.append(
            VLLMServerGenerator(
                [s.url for s in servers], str(tiny_model), **{"max_model_len": 64, **limits, **settings}
            )
        )
        return made[-1]

    yield build
    for generator in made:
        generator.close()


def weights(seed: int) -> list[tuple[str, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    return [
        (name, torch.rand(shape, generator=chance)) for name, shape in (("matrix", (3, 4)), ("vector", (5,)))
    ]


def digest(named: list[tuple[str, Tensor]]) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in named)


def expected() -> list[list[tuple[int, ...]]]:
    """Token ids of PROMPTS and SEEDS."""

    def tokens(prompt: list[int], seed: int) -> tuple[int, ...]:
        return tuple(completion({"prompt": prompt, "seed": seed, "max_tokens": 4})["token_ids"])

    return [[tokens(p, seed) for seed in group] for p, group in zip(PROMPTS, SEEDS, strict=True)]


def sampled(generator: VLLMServerGenerator) -> list[list[tuple[int, ...]]]:
    groups = generator.generate(PROMPTS, SAMPLING, SEEDS)
    return [[one.token_ids for one in group] for group in groups]


def test_request_and_completion(start: Start, make: Make) -> None:
    server = start()
    generator = make(server, end_token_ids=(0, 3))
    (((one,)),) = generator.generate([[5, 6, 7]], SAMPLING, [[41]])
    (asked,) = [body for path, body, _ in server.requests if path == "/v1/completions"]
    assert asked == {
        "model": "served", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "seed": 41, "logprobs": 0,
        "stop_token_ids": [0, 3], "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    assert one.token_ids == (40, 41, 42, 43)  # 5 + 6 + 7 + 10 * 41 = 428 = 40 modulo 97
    assert one.logprobs == (-5.0, -5.125, -5.25, -5.375)
    assert (one.finish_reason, one.policy_version) == ("length", 0)
    assert generator.score([[5, 6, 7], [9, 2]]) == [[-1.5, -1.75], [-0.5]]


def test_groups_are_spread_and_stay_together(start: Start, make: Make) -> None:
    servers = [start(), start()]
    assert sampled(make(*servers)) == expected()
    shares = [{tuple(prompt) for prompt in server.prompts} for server in servers]
    assert all(shares)
    assert not shares[0] & shares[1]


def test_no_more_requests_at_once_than_allowed(start: Start, make: Make) -> None:
    together = threading.Barrier(2, timeout=10)

    def wait_for_another(path: str, body: dict[str, Any]) -> None:
        if path == "/v1/completions":
            together.wait()

    server = start(wait_for_another)
    make(server, concurrency=2).generate([[5], [6]], SAMPLING, [[1, 2, 3], [4, 5, 6]])
    assert server.most_at_once == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(start: Start, make: Make, status: int) -> None:
    busy = iter([True, False])
    server = start(lambda path, body: (status, {}) if path == "/v1/completions" and next(busy) else None)
    groups = make(server).generate([[5]], SAMPLING, [[0]])
    assert groups[0][0].token_ids == (5, 6, 7, 8)
    assert len(server.prompts) == 2


def test_a_refused_request_ends_the_run(start: Start, make: Make) -> None:
    server = start(lambda path, body: (400, {"error": "bad token"}) if path == "/v1/completions" else None)
    with pytest.raises(ValueError, match=r"/v1/completions responded 400 .*bad token"):
        make(server).generate([[5]], SAMPLING, [[0]])


def test_a_request_that_always_fails_ends_the_run(start: Start, make: Make) -> None:
    server = start(lambda path, body: (500, {}) if path == "/v1/completions" else None)
    with pytest.raises(
        ServersGoneError, match=rf"a request failed 3 times, the last time at {server.url}: 500"
    ):
        make(server, retries=2).generate([[5]], SAMPLING, [[0]])


def test_a_server_that_dies_is_left_out_and_used_again_with_the_last_weights(
    start: Start, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    dead = threading.Event()

    def die_after_two(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if path == "/v1/completions" and len(dying.prompts) > 2:
            dead.set()
        return (500, {"error": "dead"}) if dead.is_set() else None

    dying, living = start(die_after_two), start()
    generator = make(dying, living)
    generator.update_weights(iter(weights(1)), 1)
    with caplog.at_level(logging.WARNING, "rwml_lightning"):
        assert sampled(generator) == expected()
        assert f"{dying.url} is left out: 500" in caplog.text
        asked = len(dying.prompts)
        generator.update_weights(iter(weights(2)), 2)
        assert sampled(generator) == expected()
        assert len(dying.prompts) == asked
        dying.begin()
        dead.clear()
        wait_for(lambda: f"{dying.url} is used again" in caplog.text)
    assert {name: tensor.tolist() for name, tensor in dying.tensors.items()} == {
        name: tensor.tolist() for name, tensor in weights(2)
    }
    assert len(dying.prompts) == asked
    dying.hook = lambda path, body: None
    assert sampled(generator) == expected()
    assert len(dying.prompts) > asked


def test_completions_of_a_server_that_restarted_unnoticed_are_made_again(start: Start, make: Make) -> None:
    def restart_at_the_second(path: str, body: dict[str, Any]) -> None:
        if path == "/v1/completions" and len(restarting.prompts) == 2:
            restarting.begin()

    restarting, steady = start(restart_at_the_second), start()
    generator = make(restarting, steady)
    generator.update_weights(iter(weights(1)), 1)
    first = len(steady.prompts) + len(restarting.prompts)
    assert sampled(generator) == expected()
    assert len(steady.prompts) + len(restarting.prompts) > first + 9


@pytest.mark.parametrize(
    ("also", "request_s"),
    [(["/collective_rpc"], 0.3), (["/collective_rpc", "/health"], 600.0)],
    ids=["a request takes too long", "the health check takes too long"],
)
def test_a_server_that_hangs_is_left_out(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch, also: list[str], request_s: float
) -> None:
    release = threading.Event()

    def hang(path: str, body: dict[str, Any]) -> None:
        if path in ("/v1/completions", *also) and hanging.prompts:
            release.wait(20)

    monkeypatch.setattr(server_client, "CONTROL_S", 0.5)
    hanging, living = start(hang), start()
    generator = make(hanging, living, request_timeout_s=request_s)
    try:
        assert sampled(generator) == expected()
    finally:
        release.set()


def test_when_all_are_gone_it_waits_and_says_so(
    start: Start, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    gone = threading.Event()
    server = start(lambda path, body: (502, {}) if gone.is_set() else None)
    generator = make(server, outage_timeout_s=0.5)
    generator.start()
    gone.set()
    with (
        caplog.at_level(logging.WARNING, "rwml_lightning"),
        pytest.raises(ServersGoneError, match=r"no server could be used for 0\.5 s .*502 .*VLLM_SERVER_DEV_MODE=1 python"),
    ):  # fmt: skip
        generator.generate([[5]], SAMPLING, [[0]])
    assert "no server can be used; waiting up to" in caplog.text


def test_it_goes_on_when_one_comes_back(start: Start, make: Make) -> None:
    gone = threading.Event()
    server = start(lambda path, body: (502, {}) if gone.is_set() else None)
    generator = make(server, outage_timeout_s=20.0)
    generator.update_weights(iter(weights(1)), 1)
    gone.set()
    threading.Timer(0.5, lambda: (server.begin(), gone.clear())).start()
    assert sampled(generator) == expected()
    assert set(server.tensors) == {"matrix", "vector"}


def test_tensors_travel_as_they_are_given(start: Start, make: Make) -> None:
    server = start(dtype="bfloat16")
    generator = make(server)
    assert generator.weights_dtype == "bfloat16"
    given = [(name, tensor.bfloat16() if name == "matrix" else tensor) for name, tensor in weights(1)]
    generator.update_weights(iter(given), 7)
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in server.tensors.items()} == {
        name: (tensor.dtype, tensor.tolist()) for name, tensor in given
    }
    assert generator.weights_digest == digest(given)
    assert generator.generate([[5]], SAMPLING, [[0]])[0][0].policy_version == 7


def test_changes_of_the_trainer_do_not_reach_the_copy(start: Start, make: Make) -> None:
    server = start()
    generator = make(server)
    given = weights(1)
    generator.update_weights(iter(given), 1)
    given[0][1].zero_()
    server.begin()
    assert sampled(generator) == expected()
    assert torch.equal(server.tensors["matrix"], weights(1)[0][1])


def test_a_server_that_took_other_tensors_is_not_used(start: Start, make: Make) -> None:
    def spoil(path: str, body: dict[str, Any]) -> None:
        if path == "/finish_weight_update":
            server.tensors["vector"][0] += 1

    server = start(spoil)
    generator = make(server, outage_timeout_s=0.2)
    with pytest.raises(ServersGoneError, match="took other tensors than the trainer sent"):
        generator.update_weights(iter(weights(1)), 1)
    assert generator.weights_digest is None
    assert not server.prompts


def test_a_transfer_that_is_cut_is_sent_again_before_the_server_is_used(start: Start, make: Make) -> None:
    cut = iter([True, False, False])

    def fail_once(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        return (500, {"error": "cut"}) if path == "/update_weights" and next(cut) else None

    failing, other = start(fail_once), start()
    generator = make(failing, other)
    generator.update_weights(iter(weights(1)), 1)
    assert other.digest == digest(weights(1))
    wait_for(lambda: failing.digest == digest(weights(1)))
    assert [path for path, _, _ in failing.requests if path == "/update_weights"] == ["/update_weights"] * 2


def test_weights_of_another_run_are_not_sampled_from(start: Start, make: Make) -> None:
    server = start()
    make(server).update_weights(iter(weights(1)), 1)
    later = make(server)
    with pytest.raises(ValueError, match="has the weights of another run or step"):
        later.generate([[5]], SAMPLING, [[0]])
    later.update_weights(iter(weights(2)), 1)
    assert sampled(later) == expected()


def test_a_rank_that_does_not_send_waits_for_its_weights(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    sender, other = make(server), make(server)
    sender.start()
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    waiting = threading.Thread(target=other.update_weights, args=(iter(weights(1)), 3))
    waiting.start()
    time.sleep(0.3)
    assert other.weights_digest is None
    assert not server.tensors
    monkeypatch.undo()
    sender.update_weights(iter(weights(1)), 3)
    waiting.join(10)
    assert (other.weights_digest, other.policy_version) == (sender.weights_digest, 3)
    assert [path for path, _, _ in server.requests].count("/update_weights") == 1


def test_a_rank_with_other_weights_does_not_go_on(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    make(server).update_weights(iter(weights(1)), 1)
    other = make(server, outage_timeout_s=0.3)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    with pytest.raises(ServersGoneError, match="has the weights of another run or step"):
        other.update_weights(iter(weights(2)), 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"takes_weights": False}, r"does not take weights from a trainer \(--weight-transfer-config"),
    "log-probabilities": ({"logprobs_mode": "raw_logprobs"}, "returns raw_logprobs, which are wrong"),
    "context": ({"max_model_len": 63}, "has a context of 63 tokens, but 64 are needed"),
    "copies": ({"data_parallel_size": 2}, "runs several copies of the model"),
    "chunks": ({"chunked_prefill": True}, "cuts prompts into chunks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_server_is_refused_with_the_right_command(case: str, start: Start, make: Make) -> None:
    changes, message = WRONG[case]
    server = start(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        make(server).check()
    command = (
        f"python -m vllm.entrypoints.openai.api_server --model {make(server).model} --host 127.0.0.1 --port {server.port} "
        "--max-model-len 64 --logprobs-mode processed_logprobs --generation-config vllm --worker-extension-cls "
        'rwml_lightning.generation.servers.worker.ServerExtension --weight-transfer-config \'{"backend": "rwml"}\' '
        "--dtype float32 --no-enable-chunked-prefill"
    )
    assert str(caught.value).endswith(f"start it with: VLLM_SERVER_DEV_MODE=1 {command}")
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(start: Start, make: Make, tiny_model: Path) -> None:
    server = start(model={**describe_model(str(tiny_model)), "vocab_size": 11})
    with pytest.raises(
        ValueError, match=rf"serves another model than {tiny_model}: vocab_size is 11, not \d+"
    ):
        make(server).check()


ANSWERS: dict[str, tuple[dict[str, tuple[int, Any]], str]] = {
    "another program": ({"/version": (404, {})}, "is not a vLLM server"),
    "another API": ({"/version": (200, [1])}, "is not a vLLM server"),
    "a page": ({"/version": (200, b"<html>")}, "is not a vLLM server"),
    "a key": ({"/v1/models": (401, {"error": "Unauthorized"})}, "needs an API key: set api_key_env"),
    "no trainer": ({"/collective_rpc": (404, {})}, "VLLM_SERVER_DEV_MODE is not 1"),
    "no extension": (
        {"/collective_rpc": (500, {"error": "'CPUWorker' object has no attribute 'describe'"})},
        r"no worker extension of this library \(--worker-extension-cls\)",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_server_of_another_kind_is_refused(case: str, start: Start, make: Make) -> None:
    answers, message = ANSWERS[case]
    with pytest.raises(ValueError, match=message):
        make(start(lambda path, body: answers.get(path))).check()


def test_a_url_that_nothing_listens_on(start: Start, make: Make, tiny_model: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    generator = VLLMServerGenerator([start().url, url], str(tiny_model), max_model_len=64)
    with pytest.raises(
        ValueError, match=rf"{url} does not respond \(.*start it with: VLLM_SERVER_DEV_MODE=1"
    ):
        generator.check()


def test_it_waits_at_the_start_if_told(start: Start, make: Make) -> None:
    up = threading.Event()
    server = start(lambda path, body: None if up.is_set() else (502, {}))
    threading.Timer(0.3, up.set).start()
    assert sampled(make(server, startup_timeout_s=20.0)) == expected()


def test_servers_of_two_dtypes_are_refused(start: Start, make: Make) -> None:
    with pytest.raises(ValueError, match="the servers compute in different dtypes"):
        make(start(), start(dtype="bfloat16")).check()


def test_the_key_is_sent_and_never_shown(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
    server = start(
        lambda path, body: (500, "key sk-very-secret is bad") if path == "/v1/completions" else None
    )
    generator = make(server, api_key_env="SERVER_KEY", retries=0)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ServersGoneError, match=r"key \*\*\* is bad") as caught,
    ):
        generator.generate([[5]], SAMPLING, [[0]])
    assert {headers["Authorization"] for _, _, headers in server.requests} == {"Bearer sk-very-secret"}
    assert "sk-very-secret" not in caplog.text + str(caught.value) + repr(vars(generator))


def test_the_command_for_a_server_with_a_key_names_the_variable(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
    server = start(lambda path, body: (401, {}) if path == "/v1/models" else None)
    with pytest.raises(
        ValueError,
        match=r"does not accept the API key in SERVER_KEY; .*VLLM_API_KEY=\"\$SERVER_KEY\" python .*--middleware rwml_lightning\.generation\.servers\.guard\.RequireKey$",
    ):
        make(server, api_key_env="SERVER_KEY").check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": []}, "urls must name at least one server"),
        ({"urls": ["http://a:1", "http://a:1/v1"]}, "each only once"),
        ({"urls": ["http://user:word@a:1"]}, "without user, password"),
        ({"urls": ["http://a:1"], "concurrency": 0}, "concurrency must be at least 1"),
        ({"urls": ["http://a:1"], "request_timeout_s": 0}, "time limits above 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMServerGenerator(**settings)
