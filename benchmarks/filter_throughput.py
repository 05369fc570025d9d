"""Tokens a second of the whole easy-sample filter's predictions against the generator alone, alternating in one run.

    python benchmarks/filter_throughput.py [--generator hf] [--num_transitions 64] [--rounds 3]

Both sides answer the same prompts with the same weights and the same seeds; that they wrote the same tokens is checked
first. The generator alone gets all prompts in one call, prompts encoded before. The filter does all that it does in a
run: it encodes, generates batch by batch, reads the answers, embeds and scores them, writes its parts. The copy's training
and the start of the engine are in neither. The filter should reach at least 0.8 of the generator alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from rwml_callbacks.easy_sample_copy import CopyData
from rwml_callbacks.scored_parts import Answers, ScoredParts, read_parts
from rwml_callbacks.weight_sync import WeightSync

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.easy_samples import mean_rewards
from rwml_lightning.data.prompts import WorldModelPrompt
from rwml_lightning.data.rollouts import member_seeds
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.modules import WorldModelSFT
from rwml_lightning.rewards import EmbeddingReward
from rwml_lightning.schema import Sampling, Transition

PLACES = ("fridge", "drawer", "cabinet", "shelf", "desk", "microwave", "safe", "bed")
THINGS = ("apple", "mug", "plate", "knife", "book", "pen", "lettuce", "pan", "egg", "cup")


def make_transitions(count: int) -> list[Transition]:
    """Household transitions with distinct texts."""
    made = []
    for number in range(count):
        place = f"{PLACES[number % len(PLACES)]} {number // len(PLACES) + 1}"
        thing = f"{THINGS[number % len(THINGS)]} {number // len(THINGS) + 1}"
        made.append(
            Transition(
                transition_id=f"t{number}",
                environment="household",
                game="g",
                task=f"put a clean {thing} in {place}",
                history=(),
                observation=f"You arrive at {place}. The {place} is closed. You carry {thing}.",
                action=f"open {place}",
                next_state=f"You open the {place}. The {place} is open. In it, you see nothing but {thing}.",
            )
        )
    return made


class Measured(WeightSync):
    """Starts the engine and gives it the weights before the clock runs."""

    started = 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_predict_start(trainer, pl_module)
        self.started = time.perf_counter()


def run_filter(
    data: RolloutDataModule, model: str, arguments: argparse.Namespace, seed: int
) -> tuple[float, int]:
    """Seconds of the filter's predictions, writing and scoring included, and their tokens."""
    reward = data.reward
    judged = data.train_transitions

    def score(answers: Answers) -> dict[str, float]:
        return mean_rewards(reward, 0.1, answers.transitions, answers.predictions)

    copy_data = CopyData(data, [], judged, 1, 1, arguments.num_samples, arguments.prompts_per_batch, seed)
    with tempfile.TemporaryDirectory() as folder:
        parts, clock = ScoredParts(Path(folder), score, len(judged), lambda: None), Measured()
        trainer = L.Trainer(
            accelerator=arguments.accelerator, devices=1, logger=False, callbacks=[clock, parts],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = WorldModelSFT(model=model)
        trainer.strategy.connect(module)
        data.trainer = trainer
        trainer.predict(module, copy_data, return_predictions=False)
        seconds = time.perf_counter() - clock.started
        return seconds, read_parts(Path(folder))[1].num_tokens


def run_generator(
    generator: Generator, data: RolloutDataModule, arguments: argparse.Namespace, seed: int
) -> tuple[float, int]:
    """Seconds and tokens of one call for all."""
    judged = data.train_transitions
    prompts = [data.prompt.encode(data.module.tokenizer, transition) for transition in judged]
    seeds = member_seeds(seed, "easy_sample_filter", 0, judged, arguments.num_samples)
    if isinstance(generator, VLLMGenerator):
        generator.reset_prefix_cache()
    start = time.perf_counter()
    groups = generator.generate(prompts, data.sampling, seeds)
    return time.perf_counter() - start, sum(len(c.token_ids) for group in groups for c in group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument("--embedder", default="package:all-minilm-l6-v2")
    parser.add_argument("--generator", choices=("hf", "vllm"), default="vllm")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--num_transitions", type=int, default=64)
    parser.add_argument("--num_samples", type=int, default=10)
    parser.add_argument("--prompts_per_batch", type=int, default=16)
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    generator: Generator = (
        HFGenerator(arguments.model)
        if arguments.generator == "hf"
        else VLLMGenerator(arguments.model, max_model_len=1024, enforce_eager=arguments.accelerator == "cpu")
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        write_transitions(path, make_transitions(arguments.num_transitions))
        reward = EmbeddingReward(arguments.embedder)
        reward.embed(["warm"])
        data = RolloutDataModule(
            str(path), generator, reward, prompt=WorldModelPrompt(), sampling=Sampling(arguments.max_tokens)
        )
        data.train_transitions = make_transitions(arguments.num_transitions)
        rounds = []
        for index in range(arguments.rounds):
            whole, tokens = run_filter(data, arguments.model, arguments, seed=index)
            alone, expected = run_generator(generator, data, arguments, seed=index)
            assert abs(tokens - expected) <= 0.02 * expected, f"{tokens} tokens against {expected}"
            rounds.append((tokens / whole, expected / alone))
    generator.close()
    table = Table(
        title=f"{arguments.num_transitions} transitions x {arguments.num_samples} predictions of at most "
        f"{arguments.max_tokens} tokens, {arguments.generator}"
    )
    for heading in ("round", "filter tokens/s", "generator alone", "ratio"):
        table.add_column(heading, justify="right")
    for index, (ours, alone) in enumerate(rounds):
        table.add_row(str(index + 1), f"{ours:.0f}", f"{alone:.0f}", f"{ours / alone:.2f}")
    ratio = statistics.median(ours / alone for ours, alone in rounds)
    table.add_row("median", "", "", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
