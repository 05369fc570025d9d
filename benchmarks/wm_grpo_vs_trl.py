"""The same world-model GRPO step in this project ("here") and in TRL's GRPOTrainer, in alternation.

    python benchmarks/wm_grpo_vs_trl.py                       # prompt 512, 8 completions of 96, with KL; a step in TRL takes minutes
    python benchmarks/wm_grpo_vs_trl.py --generator vllm
    python benchmarks/wm_grpo_vs_trl.py --trl both            # TRL with and without gradient checkpointing
    python benchmarks/wm_grpo_vs_trl.py --prompt-tokens 64 --completion-tokens 8 --group 4

First, both sides run the same few steps on given completions (of different lengths) and given rewards. The benchmark stops
if their losses or gradient norms differ. Then each side runs one warm-up step and ``--steps`` measured steps in its own
process, and all other sides wait meanwhile.

Both sides have the same float32 model, prompt, group size, completions of exactly the given length (here the end token is an
ordinary token, TRL forbids it), reward (cosine similarity of the next state from the completion), AdamW and threads. Here
the whole of ``fit`` runs: data module, Lightning trainer, recording, and the check after every weight update. TRL decodes
with transformers' generate, its method without a GPU.

Memory is the largest resident set of all processes of a side, so it includes vLLM's engine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from wm_grpo.case import Case, Given, Step, Turns

LOSS_TOLERANCE = 1e-5
"""Largest absolute difference, in float32."""
GRADIENT_TOLERANCE = 1e-3
"""Largest relative difference of gradient norms."""
CHECK_STEPS = 3
"""Number of compared steps; the KL penalty is 0 in the first one."""
CHECK_LEARNING_RATE = 1e-5
"""Learning rate at which the KL penalty has an effect in the second step and does not explode in the third."""
PHASES = ("generate", "reward", "update", "sync", "other")
TURN_TIMEOUT_S = 1800.0
"""Longest time of one step; the first step loads models and may start an engine."""

Options = Mapping[str, Any]
HERE = "here"


class Side:
    """Run a side in its own process, start its steps, and measure its memory.

    Args:
        name: Name of the side in the table.
        case: Shape and settings of the step.
        options: Arguments of the side's ``run``.
        given: Completions and rewards to use instead of generated ones.
    """

    def __init__(self, name: str, case: Case, options: Options, given: Given | None = None) -> None:
        self.name = name
        self.peak_gib = 0.0
        self.log = tempfile.NamedTemporaryFile("w+", prefix="benchmark-", suffix=".log")  # noqa: SIM115
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_run_side, args=(name, case, dict(options), given, theirs, self.log.name)
        )
        self.process.start()
        theirs.close()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()  # ends a side that still waits for its turn
        self.process.join(60)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()
        self._stop.set()
        self._watcher.join()
        self.log.close()

    def step(self) -> Step:
        """Start the side's next step and wait for its report.

        Raises:
            SystemExit: The side failed, or took too long.
        """
        try:
            self.connection.send("go")
            if self.connection.poll(TURN_TIMEOUT_S):
                step: Step = self.connection.recv()
                self.peak_gib = max(self.peak_gib, step.peak_gib)
                return step
            problem = f"took longer than {TURN_TIMEOUT_S:.0f} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            problem = "failed"
        raise SystemExit(
            f"{self.name} {problem}; the end of its output:\n{Path(self.log.name).read_text()[-3000:]}"
        )

    def _watch(self) -> None:
        process = psutil.Process(self.process.pid)
        while not self._stop.wait(0.1):
            try:
                processes = [process, *process.children(recursive=True)]
                resident = sum(p.memory_info().rss for p in processes)
            except psutil.NoSuchProcess:
                continue
            self.peak_gib = max(self.peak_gib, resident / 2**30)


def _run_side(
    name: str, case: Case, options: dict[str, Any], given: Given | None, connection: Connection, log: str
) -> None:
    """Run a side in its process. Imports are here, so that the parent stays small and threads are set before torch loads."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ["OMP_NUM_THREADS"] = str(case.threads)
    from wm_grpo import here

    turns = Turns(case.num_steps, connection)
    if name == HERE:
        here.run(case, turns, given=given, **options)
        return
    from wm_grpo import peer

    peer.run(case, turns, given=given, **options)


def compare(case: Case, sides: Mapping[str, Options]) -> list[tuple[float, float]]:
    """Return the largest difference of losses, and the largest relative one of gradient norms, of each peer to this side.

    Raises:
        SystemExit: A difference is above its tolerance.
    """
    given = Given.of(case)
    taken: dict[str, list[Step]] = {}
    for name, options in sides.items():
        with Side(name, case, options, given) as side:
            taken[name] = [side.step() for _ in range(case.num_steps)]
    differences = []
    for name in sides:
        if name == HERE:
            continue
        loss, gradient = step_differences(taken[HERE], taken[name])
        differences.append((loss, gradient))
        if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
            losses = " ".join(
                f"{a.loss:.6f}/{b.loss:.6f}" for a, b in zip(taken[HERE], taken[name], strict=True)
            )
            raise SystemExit(
                f"here and {name} differ: loss {loss:.1e}, gradient norm {gradient:.1e}; {losses}"
            )
    return differences


def step_differences(ours: Sequence[Step], theirs: Sequence[Step]) -> tuple[float, float]:
    """Return the largest absolute difference of losses and the largest relative difference of gradient norms."""
    pairs = list(zip(ours, theirs, strict=True))
    loss = max(abs(a.loss - b.loss) for a, b in pairs)
    return loss, max(abs(a.gradient_norm - b.gradient_norm) / b.gradient_norm for a, b in pairs)


def phases(steps: Sequence[Step]) -> dict[str, float]:
    """Return median seconds by phase and in total."""
    rows = [{**step.seconds, "other": step.total - sum(step.seconds.values())} for step in steps]
    return {phase: statistics.median(row.get(phase, 0.0) for row in rows) for phase in PHASES} | {
        "total": statistics.median(step.total for step in steps)
    }


def report(case: Case, steps: Mapping[str, Sequence[Step]], peaks: Mapping[str, float]) -> Table:
    """Return a table of seconds, memory, and the ratio of each peer to this side."""
    table = Table(
        title=f"prompt {case.prompt_tokens}, {case.group_size} completions of {case.completion_tokens}, KL "
        f"{case.kl_coefficient}, {case.threads} threads; median of {case.num_steps - 1} steps after the first"
    )
    peers = [name for name in steps if name != HERE]
    for column in ("", *steps, *(f"{name} / {HERE}" for name in peers)):
        table.add_column(column, justify="left" if not column else "right")
    seconds = {name: phases(taken) for name, taken in steps.items()}
    for phase in (*PHASES, "total"):
        ratios = (
            [f"{seconds[name][phase] / seconds[HERE][phase]:.1f}" for name in peers]
            if phase in ("generate", "update", "total")
            else [""] * len(peers)
        )
        table.add_row(f"{phase} (s)", *(f"{seconds[name][phase]:.2f}" for name in steps), *ratios)
    ratios = [f"{peaks[name] / peaks[HERE]:.1f}" for name in peers]
    table.add_row("peak memory (GiB)", *(f"{peaks[name]:.2f}" for name in steps), *ratios)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--completion-tokens", type=int, default=96)
    parser.add_argument("--group", type=int, default=8, help="number of completions")
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one warm-up step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--generator", choices=("hf", "vllm"), default="hf", help="generator of this side")
    parser.add_argument(
        "--trl", choices=("default", "plain", "both"), default="default",
        help="TRL with gradient checkpointing (default: as in TRL), without (plain), or both",
    )  # fmt: skip
    arguments = parser.parse_args()
    case = Case(
        arguments.model,
        arguments.prompt_tokens,
        arguments.completion_tokens,
        arguments.group,
        1 + arguments.steps,
        threads=arguments.threads,
    )
    sides: dict[str, Options] = {HERE: {"generator_name": arguments.generator}}
    if arguments.trl in ("default", "both"):
        sides["TRL"] = {"gradient_checkpointing": True}
    if arguments.trl in ("plain", "both"):
        sides["TRL, no checkpointing"] = {"gradient_checkpointing": False}

    console = Console()
    check = replace(
        case,
        prompt_tokens=min(case.prompt_tokens, 128),
        completion_tokens=min(case.completion_tokens, 32),
        num_steps=CHECK_STEPS,
        learning_rate=CHECK_LEARNING_RATE,
    )
    for loss, gradient in compare(check, sides):
        console.print(
            f"{CHECK_STEPS} steps on given completions: losses differ by {loss:.1e} (tolerance {LOSS_TOLERANCE:.0e}), "
            f"gradient norms by {gradient:.1e} of TRL's (tolerance {GRADIENT_TOLERANCE:.0e})"
        )
    steps: dict[str, list[Step]] = {name: [] for name in sides}
    with ExitStack() as stack:
        running = {name: stack.enter_context(Side(name, case, options)) for name, options in sides.items()}
        for index in range(case.num_steps):
            for name, side in running.items():
                step = side.step()
                if set(step.completion_lengths) != {case.completion_tokens}:
                    raise SystemExit(
                        f"{name} wrote completions of {sorted(set(step.completion_lengths))} tokens"
                    )
                label = f"step {index}" if index else "warm-up"
                console.print(f"{label}, {name}: {step.total:.1f} s, mean reward {step.reward:.2f}")
                if index:
                    steps[name].append(step)
        peaks = {name: side.peak_gib for name, side in running.items()}
    console.print(report(case, steps, peaks))


if __name__ == "__main__":
    main()
