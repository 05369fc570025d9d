"""Overhead of a policy rollout: time in the environment, and tokens per second compared with single turns.

    python benchmarks/policy_rollouts.py [--model runs/policy-quickstart/warm_up] [--generator vllm] [--rounds 3]

Games x members play a few turns of generated ALFWorld games; each turn is one batch of all live episodes. The same generator
then gets the same prompts as single turns. Their batches have as many prompts as the first batch of the rollout. Each prompt has
its seed of the rollout, so that the same tokens are generated, and the prefix cache is emptied before. So the ratio shows the
loss by episodes that end early (batches shrink) and the gain by the cache of earlier turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.envs.alfworld.generate import generate_games
from rwml_lightning.episodes.games import draw_games
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.models import load_tokenizer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Completion, Sampling

PROMPT = ActionPrompt(
    "conversation",
    system="",
    user="{observation}\nTask: {task}",
    reply="{observation}\nTask: {task}",
    answer="{action}",
)


class Recorder:
    """Pass calls on to a generator, and record prompts, batch sizes, tokens and seconds."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.policy_version, self.max_model_len = generator.policy_version, generator.max_model_len
        self.prompts: list[tuple[Sequence[int], Sequence[int]]] = []
        self.batches: list[int] = []
        self.num_tokens, self.seconds = 0, 0.0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        self.prompts += [
            (prompt, [seed]) for prompt, group in zip(prompts, seeds, strict=True) for seed in group
        ]
        self.batches.append(sum(map(len, seeds)))
        found, seconds = timed(self.generator, prompts, sampling, seeds)
        self.num_tokens += count(found)
        self.seconds += seconds
        return found


def timed(
    generator: Generator, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> tuple[list[list[Completion]], float]:
    start = time.perf_counter()
    found = generator.generate(prompts, sampling, seeds)
    return found, time.perf_counter() - start


def count(found: Sequence[Sequence[Completion]]) -> int:
    return sum(len(completion.token_ids) for group in found for completion in group)


def empty_cache(generator: Generator) -> None:
    if isinstance(generator, VLLMGenerator):
        generator.reset_prefix_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument("--generator", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--games", type=int, default=4)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    generator: Generator = (
        HFGenerator(arguments.model, max_model_len=1024)
        if arguments.generator == "hf"
        else VLLMGenerator(arguments.model, max_model_len=1024, block_size=32, enforce_eager=True)
    )
    chat = ChatFormat(load_tokenizer(arguments.model))
    sampling = Sampling(arguments.max_tokens)
    generator.start()
    table = Table(
        title=f"{arguments.games} games x {arguments.members} members, up to {arguments.turns} turns, {arguments.generator}"
    )
    for heading in (
        "round",
        "batches",
        "tokens",
        "rollout tokens/s",
        "single-turn tokens/s",
        "ratio",
        "env share of rollout",
    ):
        table.add_column(heading, justify="right", overflow="fold")
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        generate_games(Path(folder), arguments.games * (arguments.rounds + 1), difficulty="minimal")
        spec = EnvironmentSpec("rwml/ALFWorld-v0", {"data": folder})
        with EnvironmentPool(spec, 2) as pool:
            games = draw_games(spec, None, None, 0, False, "games")
            for number in range(arguments.rounds + 1):
                own = games[number * arguments.games :][: arguments.games]
                empty_cache(generator)
                recorder = Recorder(generator)
                player = EpisodePlayer(pool, PolicyClient(recorder, chat, 1024), PROMPT, number)  # type: ignore[arg-type]
                seconds = player.collect(
                    "benchmark", number, own, arguments.members, sampling, arguments.turns
                ).seconds
                empty_cache(generator)
                tokens, single = 0, 0.0
                size = arguments.games * arguments.members
                for start in range(0, len(recorder.prompts), size):
                    prompts, seeds = zip(*recorder.prompts[start : start + size], strict=True)
                    found, took = timed(generator, prompts, sampling, seeds)
                    tokens, single = tokens + count(found), single + took
                if number == 0:
                    continue  # warm-up
                rollout = recorder.num_tokens / recorder.seconds
                ratios.append(rollout / (tokens / single))
                table.add_row(
                    str(number), " ".join(map(str, recorder.batches)), f"{recorder.num_tokens} / {tokens}", f"{rollout:.0f}",
                    f"{tokens / single:.0f}", f"{ratios[-1]:.2f}", f"{100 * seconds['env'] / sum(seconds.values()):.1f} %",
                )  # fmt: skip
    generator.close()
    console = Console()
    console.print(table)
    console.print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
