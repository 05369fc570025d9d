"""Measure on one CUDA card what the other benchmarks measure on a CPU, and what only a card can show.

    python benchmarks/gpu.py                             # all parts
    python benchmarks/gpu.py packed transfer             # some parts
    python benchmarks/gpu.py packed --shapes 1.5B        # one size of the model
    python benchmarks/gpu.py packed generation transfer --tiny   # small sizes, on a CPU as well

Each part runs in its own process with its own time limit, so that one that fails or hangs leaves the rest. Models have random
weights in the shapes of Qwen2.5, made on the card, so that nothing is downloaded. Results are appended to a file as JSON lines
with the card's name, and shown in tables at the end.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gpu_parts.report import Report, part_tables, read_results
from rich.console import Console

ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Args:
        module: Module in ``gpu_parts``.
        limit_s: Time limit in seconds.
        needs_card: Whether a CPU cannot run it, not even with small sizes.
        about: What it measures.
    """

    module: str
    limit_s: float
    needs_card: bool
    about: str


PARTS = {
    "packed": Part("packed", 240, False, "prefix tree against padded batch: values, gradients, time, memory"),
    "generation": Part("generation", 420, False, "sampled tokens per second of both generators"),
    "transfer": Part("transfer", 300, False, "weight updates by each path, and the share of the digests"),
    "sleep": Part("sleep", 300, True, "sleep of a vLLM engine, and its wake with new weights"),
    "trl": Part("against_trl", 480, True, "one world-model GRPO step against TRL, with vLLM on both sides"),
    "plan": Part("plan", 600, True, "planned memory against the real peaks of training steps"),
}
SHAPES = ("1.5B", "7B")


def run_part(name: str, path: Path, shapes: Sequence[str]) -> int:
    """Run a part in this process, and return its number of failures."""
    import torch
    from gpu_parts.device import card_name

    report = Report(name, path, {"card": card_name(), "torch": torch.__version__})
    importlib.import_module(f"gpu_parts.{PARTS[name].module}").run(report, shapes)
    return report.num_failures


def start_part(name: str, arguments: argparse.Namespace) -> bool:
    """Run a part in its own process; return whether it ended in time and without a failure."""
    limit_s = arguments.limit or PARTS[name].limit_s
    command = [sys.executable, __file__, name, "--here", "--output", str(arguments.output)]
    command += ["--tiny"] if arguments.tiny else ["--shapes", *arguments.shapes]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**ENVIRONMENT, **os.environ})
    try:
        problem = None if process.wait(limit_s) == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"did not end within {limit_s:g} s"
        kill_tree(process.pid)
        process.wait()
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"seconds": seconds} | ({"failed": problem} if problem else {})
    Report(name, arguments.output, {}).add("the whole part", **found)
    return problem is None


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, such as engines."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12} {part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="names of parts; all if there are none")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="sizes of the model")
    parser.add_argument("--tiny", action="store_true", help="small sizes, which a CPU can run as well")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.jsonl"), help="file of the results")
    parser.add_argument("--limit", type=float, help="time limit of each part in seconds, instead of its own")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    names = arguments.parts or list(PARTS)
    shapes = ["tiny"] if arguments.tiny else arguments.shapes
    if arguments.here:
        raise SystemExit(1 if run_part(names[0], arguments.output, shapes) else 0)
    if not has_card():
        if not arguments.tiny:
            raise SystemExit("There is no CUDA card here; --tiny runs small sizes of some parts on a CPU.")
        if need := [name for name in names if PARTS[name].needs_card]:
            raise SystemExit(f"There is no CUDA card here, which these parts need: {', '.join(need)}.")
    start = arguments.output.stat().st_size if arguments.output.exists() else 0
    ended = [start_part(name, arguments) for name in names]
    results = read_results(arguments.output, start)
    console = Console()
    for name in names:
        own = [result for result in results if result["part"] == name]
        for table in part_tables(name, own, common=("card", "torch", "part")):
            console.print(table)
    card = next((result["card"] for result in results if result.get("card")), "no card")
    console.print(f"Measured on: {card}. Results: {arguments.output}")
    raise SystemExit(0 if all(ended) else 1)


if __name__ == "__main__":
    main()
