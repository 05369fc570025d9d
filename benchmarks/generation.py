"""Sampling speed and memory of both generators on the same prompts, in alternation.

    python benchmarks/generation.py [--model package:smollm2-135m-instruct] [--num_prompts 1 4 8] [--rounds 3]

Both generate completions of exactly ``--max_tokens`` tokens (no end token), with a new seed for every round. vLLM's
prefix cache is emptied before each round, so that both prefill the prompts. The table shows the median of the rounds.
Memory is the largest resident set during generation: of this process for HFGenerator, of the engine's processes for
vLLM. Before that, the log-probabilities of both for the same sequence are compared.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.table import Table

from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.models import load_tokenizer
from rwml_lightning.schema import Sampling

TEXT = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a countertop 1, "
    "a fridge 1, a garbagecan 1, a microwave 1, a sinkbasin 1 and a stoveburner 1. You open the fridge 1. In it, you "
    "see an apple 2, a bread 1, a lettuce 1 and a potato 3. You take the potato 3 from the fridge 1. "
)


@contextmanager
def peak_memory(processes: Callable[[], list[psutil.Process]]) -> Iterator[list[float]]:
    """Yield a list with one number, which becomes the largest total resident set in GiB."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], sum(process.memory_info().rss for process in processes()) / 2**30)
            stop.wait(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def engine_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "VLLM" in p.name()]


def measure(
    generator: Generator, prompts: list[list[int]], group_size: int, max_tokens: int, seed: int
) -> tuple[float, float]:
    """Run one round; return tokens per second and peak memory in GiB."""
    if isinstance(generator, VLLMGenerator):
        generator.reset_prefix_cache()
        processes = engine_processes
    else:
        processes = lambda: [psutil.Process()]  # noqa: E731
    seeds = [
        [seed + index * group_size + member for member in range(group_size)] for index in range(len(prompts))
    ]
    with peak_memory(processes) as peak:
        started = time.perf_counter()
        groups = generator.generate(prompts, Sampling(max_tokens), seeds)
        seconds = time.perf_counter() - started
    num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
    assert num_tokens == len(prompts) * group_size * max_tokens
    return num_tokens / seconds, peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument("--num_prompts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompt_tokens", type=int, default=480)
    parser.add_argument("--max_tokens", type=int, default=96)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--enforce_eager", action="store_true", help="vLLM without compilation")
    arguments = parser.parse_args()

    text = load_tokenizer(arguments.model)(TEXT * 20, add_special_tokens=False)["input_ids"]
    prompts = [text[first : first + arguments.prompt_tokens] for first in range(max(arguments.num_prompts))]
    generators: dict[str, Generator] = {
        "HFGenerator": HFGenerator(arguments.model, end_token_ids=()),
        "VLLMGenerator": VLLMGenerator(
            arguments.model,
            max_model_len=arguments.prompt_tokens + arguments.max_tokens + 32,
            enforce_eager=arguments.enforce_eager,
            end_token_ids=(),
        ),
    }
    console = Console()
    for name, generator in generators.items():
        started = time.perf_counter()
        generator.start()
        generator.generate(prompts[:1], Sampling(8), [[0] * arguments.group_size])
        console.print(f"{name}: started and warm after {time.perf_counter() - started:.1f} s")
    hf, vllm = (generator.score(prompts[:1])[0] for generator in generators.values())
    console.print(
        f"largest difference of log-probabilities over {len(hf)} tokens: "
        f"{max(abs(a - b) for a, b in zip(hf, vllm, strict=True)):.1e}"
    )

    table = Table(
        title=f"{arguments.prompt_tokens}-token prompts, {arguments.group_size} completions of "
        f"{arguments.max_tokens} tokens each; median of {arguments.rounds} rounds"
    )
    for heading in (
        "prompts",
        *(f"{name} {unit}" for name in generators for unit in ("tokens/s", "GiB")),
        "HF / vLLM",
    ):
        table.add_column(heading, justify="right")
    for num_prompts in arguments.num_prompts:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in generators}
        for index in range(arguments.rounds):
            for name, generator in generators.items():
                rounds[name].append(
                    measure(
                        generator,
                        prompts[:num_prompts],
                        arguments.group_size,
                        arguments.max_tokens,
                        seed=1000 * index,
                    )
                )
        speed = {name: statistics.median(speed for speed, _ in results) for name, results in rounds.items()}
        cells = [
            cell
            for name, results in rounds.items()
            for cell in (f"{speed[name]:.0f}", f"{max(memory for _, memory in results):.2f}")
        ]
        table.add_row(str(num_prompts), *cells, f"{speed['HFGenerator'] / speed['VLLMGenerator']:.2f}")
    console.print(table)
    for generator in generators.values():
        generator.close()


if __name__ == "__main__":
    main()
