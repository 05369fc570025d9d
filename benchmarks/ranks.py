"""Several processes against one: the time to gather and deal a step, and the seconds of a whole step.

    python benchmarks/ranks.py gather --ranks 2 --prompts 32 --group 8      # the published step; rank r rolls out its share
    python benchmarks/ranks.py step                                         # two processes of one thread, one of two threads

`gather` sends made-up rollouts between real processes over gloo: it times the exchange of all groups, and the packing of the whole
step into micro-batches, which every rank repeats. Both are compared with the seconds of a step, which `--step-seconds` gives.

`step` trains the quickstart for a few steps from the base model, with HFGenerator, which needs no memory for a second engine. The two sides
take turns. Both have the same rollouts, so that the rewards of all steps must be equal.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from rwml_lightning import parallel
from rwml_lightning.schema import Completion, Group, Prediction, RolloutBatch, Score, Transition

VOCABULARY = 49152
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def make_rollouts(prompts: int, group: int, prompt_tokens: int, completion_tokens: int) -> list[Group]:
    """Make groups of random tokens with texts of about four characters a token."""
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    def prediction(member: int) -> Prediction:
        logprobs = tuple(-rng.random() for _ in range(completion_tokens))
        completion = Completion(tokens(completion_tokens), logprobs, "stop", 0)
        text = "word" * completion_tokens
        return Prediction(completion, text, "", text, Score(rng.random(), 0.5, True), 0.0, member)

    def one(number: int) -> Group:
        text = "word" * prompt_tokens
        transition = Transition(f"t{number}", "e", "g", "task", (), text, "go", text)
        return Group(transition, tokens(prompt_tokens), text, tuple(prediction(m) for m in range(group)))

    return [one(number) for number in range(prompts)]


def gather(arguments: argparse.Namespace) -> None:
    """Time the exchange and the packing of a step, as one of several ranks; the first one prints."""
    dist.init_process_group("gloo")
    groups = make_rollouts(
        arguments.prompts, arguments.group, arguments.prompt_tokens, arguments.completion_tokens
    )
    exchange, packing = [], []
    for _ in range(arguments.repeats):
        dist.barrier()
        start = time.perf_counter()
        batches = parallel.roll_out(groups, lambda own: RolloutBatch(0, 0, tuple(own)))
        exchange.append(time.perf_counter() - start)
        start = time.perf_counter()
        whole = [group for batch in batches for group in batch.groups]
        sequences = [g.prompt_ids + p.completion.token_ids for g in whole for p in g.predictions]
        starts = [len(g.prompt_ids) for g in whole for _ in g.predictions]
        parallel.own_micro_batches(
            sequences, starts, arguments.max_tokens, parallel.world_size(), parallel.rank()
        )
        packing.append(time.perf_counter() - start)
        assert whole == groups
    if parallel.rank() == 0:
        table = Table(title=f"{parallel.world_size()} ranks, {arguments.prompts} prompts x {arguments.group}")
        for name in ("", "seconds, median", f"share of a step of {arguments.step_seconds:g} s"):
            table.add_column(name, justify="right" if name else "left")
        for name, seconds in (("gather", exchange), ("pack and deal", packing)):
            median = statistics.median(seconds)
            table.add_row(name, f"{median:.3f}", f"{median / arguments.step_seconds:.2%}")
        Console().print(table)


def train(folder: Path, name: str, ranks: int, num_steps: int) -> list[tuple[float, float]]:
    """Train the quickstart's model for some steps; return reward and seconds of each."""
    threads = {"OMP_NUM_THREADS": str(2 // ranks)}
    launcher = [sys.executable] if ranks == 1 else [*TORCHRUN, str(ranks)]
    command = [
        *launcher, "-m", "rwml_lightning", "fit", "--config", "configs/quickstart.yaml", "--run.root", str(folder), "--run.name", name,
        "--warm_up.num_transitions", "32", "--trainer.max_steps", str(num_steps), "--trainer.devices", str(ranks), "--trainer.strategy",
        "ddp" if ranks > 1 else "auto", "--data.predictions.validation.num_transitions", "4",
        "--data.generator", "rwml_lightning.generation.HFGenerator", "--data.generator.max_model_len", "1024",
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)
    with (folder / name / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "wm_grpo"]
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        found.setdefault(int(row["step"]), {})[row["name"]] = float(row["value"])
    parts = ("time/generate", "time/reward", "time/update")
    return [(m["wm/reward"], sum(m[part] for part in parts)) for m in found.values() if "wm/reward" in m]


def step(arguments: argparse.Namespace) -> None:
    """Compare the seconds of a step on two processes of one thread with one process of two threads."""
    table = Table(title=f"{arguments.steps} steps of the quickstart, {arguments.rounds} rounds")
    for name in ("round", "1 process, 2 threads (s)", "2 processes, 1 thread (s)", "ratio"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            one, two = (train(Path(folder), f"{ranks}-{number}", ranks, arguments.steps) for ranks in (1, 2))
            rewards = [[reward for reward, _ in side] for side in (one, two)]
            assert all(abs(a - b) < 1e-6 for a, b in zip(*rewards, strict=True)), rewards
            seconds = [statistics.median(s for _, s in side[1:]) for side in (one, two)]
            table.add_row(str(number + 1), *(f"{s:.1f}" for s in seconds), f"{seconds[1] / seconds[0]:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    exchange = parts.add_parser("gather")
    for name, value in (
        ("ranks", 2), ("prompts", 8), ("group", 8), ("prompt-tokens", 256), ("completion-tokens", 96),
        ("max-tokens", 4096), ("repeats", 9),
    ):  # fmt: skip
        exchange.add_argument(f"--{name}", type=int, default=value)
    exchange.add_argument(
        "--step-seconds", type=float, default=17.5, help="a step of the quickstart on two cores"
    )
    whole = parts.add_parser("step")
    whole.add_argument("--steps", type=int, default=4)
    whole.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.part == "step":
        step(arguments)
    elif "RANK" in os.environ:
        gather(arguments)
    else:
        subprocess.run(
            [*TORCHRUN, str(arguments.ranks), *sys.argv],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


if __name__ == "__main__":
    main()
