"""Tokens per second of the whole easy-sample filter against the generator alone, in alternation.

    python benchmarks/filter_throughput.py [--generator hf] [--num_transitions 128] [--rounds 3]

First a copy of the model is trained, so that its answers are well-formed and the embedder has texts to embed. Both sides
answer the same prompts with the copy's weights and the same seeds, and their numbers of tokens are compared. The generator
alone gets all prompts in one call, already encoded. The filter does the same work as in a run: it encodes prompts, generates
batch by batch, parses, embeds and scores the answers, and writes its parts. Neither time includes training or the start of
the engine. The filter should reach at least 0.8 of the generator alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
from rich.console import Console
from rich.table import Table
from rwml_callbacks.easy_samples.copy import CopyData, predict_with_copy
from rwml_callbacks.easy_samples.marks import mean_rewards
from rwml_callbacks.easy_samples.parts import Answers, ScoredParts, Throughput, read_parts

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.rollouts import member_seeds
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.rewards import EmbeddingReward
from rwml_lightning.schema import Sampling, Transition

PLACES = ("fridge", "drawer", "cabinet", "shelf", "desk", "microwave", "safe", "bed")
TAUGHT = 32
THINGS = ("apple", "mug", "plate", "knife", "book", "pen", "lettuce", "pan", "egg", "cup")


def make_transitions(count: int) -> list[Transition]:
    """Make household transitions with distinct texts."""
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


def run_filter(
    data: RolloutDataModule, module: WorldModelGRPO, folder: Path, arguments: argparse.Namespace, seed: int
) -> Throughput:
    """Run the filter from the first prompt to the last written part. The first call also trains the copy."""
    judged = data.prediction_source.train
    reward = data.need_predictions().need_reward()
    for part in folder.glob("*.json"):
        part.unlink()

    def score(answers: Answers) -> dict[str, float]:
        return mean_rewards(reward, 0.1, answers.transitions, answers.predictions)

    copy_data = CopyData(
        data, make_transitions(TAUGHT), judged, 4, 1, arguments.num_samples, arguments.prompts_per_batch, seed
    )
    parts = ScoredParts(folder, score, len(judged), lambda: None)
    assert data.trainer is not None
    predict_with_copy(data.trainer, module, copy_data, 1e-4, parts)
    return read_parts(folder)[1]


def run_generator(
    generator: Generator, data: RolloutDataModule, arguments: argparse.Namespace, seed: int
) -> Throughput:
    """Generate all answers in one call."""
    source = data.prediction_source
    judged, settings = source.train, source.settings
    prompts = [settings.prompt.encode(source.policy.chat, transition) for transition in judged]
    seeds = member_seeds(seed, "easy_sample_filter", 0, judged, arguments.num_samples)
    if isinstance(generator, VLLMGenerator):
        generator.reset_prefix_cache()
    generator.start()
    start = time.perf_counter()
    groups = generator.generate(prompts, settings.sampling, seeds)
    seconds = time.perf_counter() - start
    return Throughput(sum(len(c.token_ids) for group in groups for c in group), seconds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument("--embedder", default="package:all-minilm-l6-v2")
    parser.add_argument("--generator", choices=("hf", "vllm"), default="vllm")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--num_transitions", type=int, default=128)
    parser.add_argument("--num_samples", type=int, default=10)
    parser.add_argument("--prompts_per_batch", type=int, default=64)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    generator: Generator = (
        HFGenerator(arguments.model)
        if arguments.generator == "hf"
        else VLLMGenerator(arguments.model, max_model_len=1024, enforce_eager=arguments.accelerator == "cpu")
    )
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder) / "t.parquet", Path(folder) / "work"
        write_transitions(path, make_transitions(arguments.num_transitions))
        reward = EmbeddingReward(arguments.embedder)
        reward.embed(["warm"])
        data = RolloutDataModule(
            generator, predictions=Predictions(str(path), reward, sampling=Sampling(arguments.max_tokens))
        )
        trainer = L.Trainer(
            accelerator=arguments.accelerator, devices=1, logger=False, enable_checkpointing=False
        )
        module = WorldModelGRPO(model=arguments.model)
        trainer.strategy.connect(module)
        data.trainer = trainer
        data.setup("fit")
        for index in range(arguments.rounds):
            whole = run_filter(data, module, work, arguments, seed=index)
            same = HFGenerator(str(work / "copy")) if isinstance(generator, HFGenerator) else generator
            alone = run_generator(same, data, arguments, seed=index)
            difference = abs(whole.num_tokens - alone.num_tokens) / alone.num_tokens
            assert difference < 0.02, f"{whole.num_tokens} tokens against {alone.num_tokens}"
            rounds.append((whole, alone))
    generator.close()
    table = Table(
        title=f"{arguments.num_transitions} transitions x {arguments.num_samples} predictions of at most "
        f"{arguments.max_tokens} tokens, {arguments.generator}"
    )
    for heading in ("round", "filter tokens/s", "generator's share", "generator alone", "ratio"):
        table.add_column(heading, justify="right")
    ratios = [whole.tokens_per_s / alone.tokens_per_s for whole, alone in rounds]
    for index, ((whole, alone), ratio) in enumerate(zip(rounds, ratios, strict=True)):
        cells = (
            f"{whole.tokens_per_s:.0f}",
            f"{whole.generator_share:.2f}",
            f"{alone.tokens_per_s:.0f}",
            f"{ratio:.2f}",
        )
        table.add_row(str(index + 1), *cells)
    table.add_row("median", "", "", "", f"{statistics.median(ratios):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
