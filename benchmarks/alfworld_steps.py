"""ALFWorld steps and resets per second: the stock engine against the fast path, in alternation on the same games and actions.

    python benchmarks/alfworld_steps.py                      # generates games, then measures
    python benchmarks/alfworld_steps.py --data DIR           # any folder of game.tw-pddl files

Both engines run in this process. Their outputs are compared at every step, so that a ratio never compares different work.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from rwml_lightning.envs.alfworld.extra import import_engine
from rwml_lightning.envs.alfworld.games import GAME_FILE, scan_games
from rwml_lightning.envs.alfworld.generate import generate_games

ENGINES = ("stock", "fast")


@dataclass
class Measured:
    """Measurements of one engine in all games."""

    load_s: list[float] = field(default_factory=list)
    reset_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    environment_mb: list[float] = field(default_factory=list)


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def play(
    make_engine: Any, path: Path, choices: Sequence[float], num_resets: int, measured: Measured
) -> tuple[Any, list[object]]:
    """Load, reset and step one game; return the engine (so that its memory still counts) and all of its outputs."""
    gc.collect()
    before_mb, start = resident_mb(), time.perf_counter()
    engine = make_engine()
    engine.load(str(path))
    state = engine.reset()
    measured.load_s.append(time.perf_counter() - start)
    for _ in range(num_resets):
        start = time.perf_counter()
        state = engine.reset()
        measured.reset_s.append(time.perf_counter() - start)
    outputs: list[object] = [(state["feedback"], state["admissible_commands"])]
    for choice in choices:
        action = state["admissible_commands"][int(choice * len(state["admissible_commands"]))]
        start = time.perf_counter()
        state, score, done = engine.step(action)
        measured.step_s.append(time.perf_counter() - start)
        outputs.append((state["feedback"], state["admissible_commands"], state["won"], score, done))
    gc.collect()
    measured.environment_mb.append(resident_mb() - before_mb)
    return engine, outputs


def report(results: dict[str, Measured], num_games: int, peak_mb: float) -> Table:
    """Return the table."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    table = Table(title=f"ALFWorld, {num_games} games, one process ({peak_mb:.0f} MB at the end)")
    for column in ("", *ENGINES, "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    stock, fast = (results[name] for name in ENGINES)
    for label, theirs, mine in (
        ("steps/s", 1 / mean(stock.step_s), 1 / mean(fast.step_s)),
        ("resets/s", 1 / mean(stock.reset_s), 1 / mean(fast.reset_s)),
        ("first loads and resets/s", 1 / mean(stock.load_s), 1 / mean(fast.load_s)),
        ("MB per environment", mean(stock.environment_mb), mean(fast.environment_mb)),
    ):
        table.add_row(label, f"{theirs:.1f}", f"{mine:.1f}", f"{mine / theirs:.1f}")
    return table


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of games (default: generate games)")
    parser.add_argument(
        "--difficulty", default="full", help="difficulty of generated games: tiny, small or full"
    )
    parser.add_argument("--num_games", type=int, default=6)
    parser.add_argument("--num_steps", type=int, default=30, help="steps per game")
    parser.add_argument("--num_resets", type=int, default=2, help="resets per game, after the first")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.data or folder)
        if arguments.data is None:
            generate_games(root, arguments.num_games, seed=0, difficulty=arguments.difficulty)
        games = scan_games(root).games
        games = games[:: max(1, len(games) // arguments.num_games)][: arguments.num_games]
        module = import_engine("rwml_lightning.envs.alfworld.engine")
        results = {name: Measured() for name in ENGINES}
        engines = []
        for number, game in enumerate(games):
            rng = Random(number)
            choices = [rng.random() for _ in range(arguments.num_steps)]
            outputs = {}
            for name in ENGINES if number % 2 == 0 else ENGINES[::-1]:
                make = (lambda: module.make_engine(fast=False)) if name == "stock" else module.make_engine
                path = root / game.task_id / GAME_FILE
                engine, outputs[name] = play(make, path, choices, arguments.num_resets, results[name])
                engines.append(engine)
            if outputs["stock"] != outputs["fast"]:
                raise SystemExit(f"the engines differ on {game.task_id}")
        Console().print(report(results, len(games), resident_mb()))


if __name__ == "__main__":
    main()
