"""VLLMServerGenerator against real vLLM servers on the CPU, over gloo."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rwml_lightning.generation import VLLMGenerator, VLLMServerGenerator
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules.scoring import score_text
from rwml_lightning.schema import Sampling
from rwml_lightning.weights import model_tensors
from support.http import free_port
from support.models import write_tiny_model
from support.vllm_http import wait_for
from support.vllm_server import kill, start_for_trainer, wait_until_healthy
from support.worlds import make_world

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(1800)]

LENGTH = 128
PROBE = [(7 * i) % 250 + 2 for i in range(32)]
PROMPTS = [[(5 * i + 11 * p) % 250 + 2 for i in range(10 + p)] for p in range(6)]
SEEDS = [[10 * p + member for member in range(4)] for p in range(6)]


@dataclass
class Servers:
    """Two servers of one model."""

    model: Path
    logs: Path
    urls: list[str]
    processes: list[subprocess.Popen[bytes]]

    def start(self, place: int) -> subprocess.Popen[bytes]:
        log = self.logs / f"{place}.log"
        return start_for_trainer(self.model, self.urls[place], log, LENGTH, cores=str(place))

    def wait(self, place: int) -> None:
        wait_until_healthy(self.processes[place], self.urls[place], self.logs / f"{place}.log")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    write_tiny_model(
        folder / "model", make_world(), 340, hidden_size=128, num_attention_heads=2
    )  # heads of 64
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    found = Servers(folder / "model", folder, urls, [])
    try:
        for place in range(2):
            found.processes.append(found.start(place))
            found.wait(place)
        yield found
    finally:
        for process in found.processes:
            kill(process)


def moved_model(folder: Path, seed: int) -> PreTrainedModel:
    """The model with other weights."""
    torch.manual_seed(seed)
    model = load_causal_lm(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def gap(model: PreTrainedModel, generator: VLLMServerGenerator) -> float:
    """Largest difference of log-probabilities of trainer and server, in nats."""
    return (score_text(model, PROBE) - torch.tensor(generator.score([PROBE])[0])).abs().max().item()


def test_an_update_arrives_and_samples_equal_those_of_an_engine_here(servers: Servers) -> None:
    model = moved_model(servers.model, 1)
    here = VLLMGenerator(str(servers.model), max_model_len=LENGTH, kv_cache_gib=0.1, enforce_eager=True)
    there = VLLMServerGenerator(servers.urls, str(servers.model), max_model_len=LENGTH)
    try:
        assert gap(model, there) > 0.1
        there.update_weights(model_tensors(model), 1)
        assert gap(model, there) < 1e-4
        here.update_weights(model_tensors(model), 1)
        assert here.weights_digest == there.weights_digest
        sampling = Sampling(max_tokens=24, temperature=0.8, top_p=0.95)
        expected = here.generate(PROMPTS, sampling, SEEDS)
        found = there.generate(PROMPTS, sampling, SEEDS)
        assert [[one.token_ids for one in group] for group in found] == [
            [one.token_ids for one in group] for group in expected
        ]
        for group, other in zip(found, expected, strict=True):
            for one, same in zip(group, other, strict=True):
                assert one.logprobs == pytest.approx(same.logprobs, abs=1e-4)
                assert (one.finish_reason, one.policy_version) == (same.finish_reason, 1)
        assert "stop" in {one.finish_reason for group in found for one in group}
    finally:
        here.close()
        there.close()


CUT = """
import os, sys, torch
from rwml_lightning.generation import VLLMServerGenerator
from rwml_lightning.generation.servers import transfer
from rwml_lightning.models import load_causal_lm
from rwml_lightning.weights import model_tensors

send, sent = transfer._Gloo.broadcast, []
def die_in_the_middle(self, tensor):
    sent.append(tensor)
    if len(sent) == 8:
        os._exit(9)
    send(self, tensor)
transfer._Gloo.broadcast = die_in_the_middle
model = load_causal_lm(sys.argv[2])
with torch.no_grad():
    for weight in model.parameters():
        weight.mul_(2)
VLLMServerGenerator([sys.argv[1]], sys.argv[2], max_model_len=128).update_weights(model_tensors(model), 1)
"""


def test_a_server_that_a_dead_trainer_left_half_new_is_not_sampled_from(servers: Servers) -> None:
    arguments = [sys.executable, "-c", CUT, servers.urls[0], str(servers.model)]
    assert subprocess.run(arguments, capture_output=True, timeout=120).returncode == 9
    model = moved_model(servers.model, 2)
    generator = VLLMServerGenerator(servers.urls[:1], str(servers.model), max_model_len=LENGTH)
    try:
        with pytest.raises(ValueError, match=r"another run or step \(digest incomplete\)"):
            generator.score([PROBE])
        generator.update_weights(model_tensors(model), 1)
        assert gap(model, generator) < 1e-4
    finally:
        generator.close()


def test_one_of_two_servers_is_killed_and_comes_back(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    model = moved_model(servers.model, 3)
    generator = VLLMServerGenerator(servers.urls, str(servers.model), max_model_len=LENGTH, concurrency=4)
    sampling = Sampling(max_tokens=64, temperature=1.0)
    prompts, seeds = (
        PROMPTS * 4,
        [[seed + 100 * turn for seed in group] for turn in range(4) for group in SEEDS],
    )
    try:
        generator.update_weights(model_tensors(model), 1)
        start = time.monotonic()
        expected = generator.generate(prompts, sampling, seeds)
        threading.Timer((time.monotonic() - start) / 3, lambda: kill(servers.processes[1])).start()
        with caplog.at_level(logging.WARNING, "rwml_lightning"):
            assert generator.generate(prompts, sampling, seeds) == expected
            assert f"{servers.urls[1]} is left out" in caplog.text
            servers.processes[1] = servers.start(1)
            servers.wait(1)
            wait_for(lambda: f"{servers.urls[1]} is used again" in caplog.text, 60)
        kill(servers.processes[0])
        assert gap(model, generator) < 1e-4  # the one that came back answers, with the weights of the run
    finally:
        generator.close()
