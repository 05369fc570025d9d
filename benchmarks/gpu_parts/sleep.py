"""Sleep and wake of a vLLM engine: GiB of the card that it frees, and seconds to sleep and to wake with new weights."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from random import Random

import torch
from torch import nn

from gpu_parts.device import timed, used_gib
from gpu_parts.generation import closing, vllm_generator
from gpu_parts.models import SHAPES, random_ids, random_model, random_model_folder
from gpu_parts.report import Report
from rwml_lightning.generation import HFGenerator, VLLMGenerator
from rwml_lightning.weights import model_tensors

NUM_NIGHTS = 2
PROBE_TOKENS = 64


def run(report: Report, shapes: Sequence[str]) -> None:
    for shape in shapes:
        with report.attempt(shape), random_model_folder(shape, torch.bfloat16) as folder:
            policy = random_model(shape, torch.bfloat16).eval()
            with closing(vllm_generator(folder, PROBE_TOKENS, enable_sleep_mode=True)) as engine:
                measure(report, shape, engine, policy)


def measure(report: Report, shape: str, engine: VLLMGenerator, policy: nn.Module) -> None:
    """Update an engine that is awake, then one that sleeps, and compare what it computes then with the trainer's model."""
    engine.start()
    probe = random_ids(Random(0), PROBE_TOKENS, SHAPES[shape]["vocab_size"])
    trainer = HFGenerator()
    trainer.attach(policy)

    def update(version: int) -> float:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.01)
        return timed(lambda: engine.update_weights(model_tensors(policy), version))[1]

    def gap() -> float:
        (theirs,), (mine,) = engine.score([probe]), trainer.score([probe])
        return statistics.mean(abs(a - b) for a, b in zip(theirs, mine, strict=True))

    report.add(f"{shape}, awake", update_s=update(1), card_gib=used_gib(), nats_apart=gap())
    for night in range(1, 1 + NUM_NIGHTS):
        awake = used_gib() or 0.0
        _, seconds = timed(engine.sleep)
        asleep = used_gib() or 0.0
        report.add(
            f"{shape}, sleep {night}",
            sleep_s=seconds,
            freed_gib=awake - asleep,
            card_gib=asleep,
            update_s=update(1 + night),
            card_gib_after=used_gib(),
            nats_apart=gap(),
        )
