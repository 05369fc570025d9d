"""Sampled tokens per second of both generators on the same random prompts, in float32 on a CPU and in bfloat16 on a card."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import torch

from gpu_parts.device import device, timed, used_gib
from gpu_parts.models import SHAPES, random_ids, random_model_folder
from gpu_parts.report import Report
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.schema import Sampling

NUM_ROUNDS = 3


@dataclass(frozen=True)
class Batch:
    """Prompts of one request.

    Args:
        num_prompts: Number of prompts.
        prompt: Tokens of each prompt.
        completion: Tokens of each completion.
        size: Number of completions of each prompt.
    """

    num_prompts: int
    prompt: int
    completion: int
    size: int


BATCHES = {
    "tiny": [Batch(2, 24, 8, 2)],
    "1.5B": [Batch(1, 2048, 128, 16), Batch(8, 2048, 128, 16)],
    "7B": [Batch(1, 2048, 128, 16), Batch(8, 2048, 128, 16)],
}


def run(report: Report, shapes: Sequence[str]) -> None:
    for shape in shapes:
        with report.attempt(shape), random_model_folder(shape, torch.bfloat16) as folder:
            measure(report, shape, folder)


def measure(report: Report, shape: str, folder: str) -> None:
    """Measure both generators one after the other, and compare their log-probabilities of one prompt."""
    batches = BATCHES[shape]
    rng = Random(0)
    prompts = [
        random_ids(rng, batches[0].prompt, SHAPES[shape]["vocab_size"])
        for _ in range(max(batch.num_prompts for batch in batches))
    ]
    longest = max(batch.prompt + batch.completion for batch in batches)
    scores: dict[str, list[float]] = {}
    for name, generator in generators(folder, longest).items():
        with report.attempt(f"{shape}, {name}"), closing(generator):
            _, seconds = timed(generator.start)
            scores[name] = generator.score(prompts[:1])[0]
            report.add(f"{shape}, {name}, start", seconds=seconds, card_gib=used_gib())
            for batch in batches:
                measure_batch(report, f"{shape}, {name}", generator, prompts, batch)
    if len(scores) == 2:
        gaps = [abs(a - b) for a, b in zip(*scores.values(), strict=True)]
        report.add(f"{shape}, log-probabilities apart", nats=statistics.mean(gaps), largest_nats=max(gaps))


def generators(folder: str, max_model_len: int) -> dict[str, Generator]:
    """Return both generators of a model, not started."""
    dtype = "bfloat16" if device() == "cuda" else "float32"
    return {
        "HFGenerator": HFGenerator(folder, dtype=dtype, end_token_ids=()),
        "VLLMGenerator": vllm_generator(folder, max_model_len),
    }


def vllm_generator(folder: str, max_model_len: int, enable_sleep_mode: bool = False) -> VLLMGenerator:
    """Return an engine with no end token, not started: on a card as in training, on a CPU as small as possible."""
    on_card = device() == "cuda"
    return VLLMGenerator(
        folder,
        max_model_len=max_model_len + 32,  # of which a check of the weights takes some
        gpu_memory_utilization=0.4,
        kv_cache_gib=None if on_card else 0.1,
        enforce_eager=not on_card,
        end_token_ids=(),
        enable_sleep_mode=enable_sleep_mode,
        startup_timeout_s=300.0,
        request_timeout_s=300.0,
    )


@contextmanager
def closing(generator: Generator) -> Iterator[Generator]:
    try:
        yield generator
    finally:
        generator.close()


def measure_batch(
    report: Report, case: str, generator: Generator, prompts: list[list[int]], batch: Batch
) -> None:
    """Time some requests of a batch after a first one, and report the median."""
    seconds = []
    for index in range(1 + NUM_ROUNDS):
        if isinstance(generator, VLLMGenerator):
            generator.reset_prefix_cache()  # so that both compute the prompts
        rows = [
            [index * 10_000 + row * batch.size + member for member in range(batch.size)]
            for row in range(batch.num_prompts)
        ]
        asked = prompts[: batch.num_prompts]
        sampling = Sampling(max_tokens=batch.completion)
        groups, taken = timed(lambda: generator.generate(asked, sampling, rows))  # noqa: B023
        if index:
            seconds.append(taken)
    num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
    report.add(
        f"{case}, {batch.num_prompts} x {batch.size} of {batch.completion} after {batch.prompt}",
        tokens=num_tokens,
        seconds=statistics.median(seconds),
        tokens_per_s=num_tokens / statistics.median(seconds),
        card_gib=used_gib(),
    )
