"""The benefit of the world-model stage: policy GRPO from the base model against policy GRPO from an RWML checkpoint.

    python benchmarks/policy_cells.py [--seeds 0 1 2] [--starts base rwml]

Every cell is configs/quickstart.yaml and configs/alfworld/policy_quickstart.yaml with policy_cells.yaml on top: the same games,
the same demonstrations to imitate, the same number of steps and episodes. Cells only differ in the initial model. The RWML
checkpoint is that of configs/quickstart.yaml, which is run first unless its export exists. Cells are stored in
runs/policy-cells/. A finished cell is not repeated, and an interrupted one continues from its last checkpoint. Prints a
Markdown table of held-out success during training.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rwml_lightning.envs.alfworld.generate import generate_games
from rwml_lightning.evaluation import bootstrap_intervals
from rwml_lightning.trace import TraceReader

ROOT = Path("runs/policy-cells")
GAMES = Path("data/policy-cells/games")
CONFIG = (
    "--config", "configs/quickstart.yaml", "--config", "configs/alfworld/policy_quickstart.yaml", "--config", "benchmarks/policy_cells.yaml",
)  # fmt: skip
WORLD_MODEL = Path("runs/quickstart/export")
STARTS = {"base": "null", "rwml": str(WORLD_MODEL)}
"""Initial model of policy training: ``model.init_args.init_from``."""
NUM_GAMES = {"train": 200, "validation": 32}
UNTAUGHT, TAUGHT = "untaught", "after imitation"
LONGEST_RUN = timedelta(minutes=60)
"""Time limit for a cell that hangs; a cell takes about ten minutes on two cores."""

Success = Mapping[str, Mapping[str, float]]
"""Share of solved held-out episodes, by point in training and game."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    arguments = parser.parse_args()

    for split, count in NUM_GAMES.items():
        generate_games(GAMES, count, 0, split, ["pick_and_place_simple"], "minimal")  # type: ignore[arg-type]
    if "rwml" in arguments.starts and not WORLD_MODEL.is_dir():
        rwml("fit", "--config", "configs/quickstart.yaml")
    for seed in arguments.seeds:
        for start in arguments.starts:
            train(start, seed)
    found = {
        start: [held_out_success(folder(start, seed)) for seed in arguments.seeds]
        for start in arguments.starts
    }
    print_table(found, {start: [folder(start, seed) for seed in arguments.seeds] for start in found})


def folder(start: str, seed: int) -> Path:
    """Return the run folder of a cell."""
    return ROOT / f"{seed}-{start}"


def train(start: str, seed: int) -> None:
    """Run a cell in its own process, unless it is finished."""
    run = folder(start, seed)
    if (run / "export").is_dir():
        return
    print(f"\ncell {run.name}", flush=True)
    begun = time.perf_counter()
    own = ("--run.root", str(ROOT), "--run.name", run.name, "--seed_everything", str(seed))
    rwml("fit", *CONFIG, *own, "--model.init_args.init_from", STARTS[start])
    if not (run / "export").is_dir():
        raise SystemExit(f"{run} was started with other settings: move it away and start the benchmark again")
    minutes = (time.perf_counter() - begun) / 60
    (run / "minutes.txt").write_text(f"{minutes:.1f}\n")
    print(f"cell {run.name}: {minutes:.1f} minutes", flush=True)


def rwml(*line: str) -> None:
    """Run a command of the package in its own process."""
    command = [sys.executable, "-m", "rwml_lightning", *line]
    code = subprocess.run(command, check=False, timeout=LONGEST_RUN.total_seconds()).returncode
    if code != 0:
        raise SystemExit(f"exit code {code} of {' '.join(command)}")


def held_out_success(run: Path) -> Success:
    """Read the evaluations of a cell from its run store, in the order of training."""
    solved: dict[str, dict[str, list[bool]]] = {}
    with TraceReader(run / "trace.db") as reader:
        for stage in ("policy_sft", "policy_grpo"):
            for row in reader.episodes_by_id(reader.episode_ids(stage)):
                if row.source == "held_out":
                    place = UNTAUGHT if stage == "policy_sft" else f"step {row.step}" if row.step else TAUGHT
                    games = solved.setdefault(place, defaultdict(list))
                    games[row.game].append(bool(row.success))
    order = sorted(
        solved, key=lambda place: -1 if place == UNTAUGHT else int(place[5:]) if place != TAUGHT else 0
    )
    return {place: {game: fmean(won) for game, won in solved[place].items()} for place in order}


def print_table(found: Mapping[str, Sequence[Success]], runs: Mapping[str, Sequence[Path]]) -> None:
    """Print a row per point in training: success per start with a 95 % interval over games, per seed, and the difference."""
    table = Table(box=box.MARKDOWN)
    table.add_column("held-out success", no_wrap=True)
    for start in found:
        table.add_column(start, justify="right", no_wrap=True)
        table.add_column("of each seed", justify="right", no_wrap=True)
    if len(found) > 1:
        table.add_column("difference", justify="right", no_wrap=True)
    for place in next(iter(found.values()))[0]:
        cells: list[str] = []
        columns: list[np.ndarray] = []
        for seeds in found.values():
            games = sorted(seeds[0][place])
            each = np.array([[success[place][game] for game in games] for success in seeds])
            columns.append(each.mean(axis=0))
            cells += [with_interval(columns[-1]), ", ".join(f"{mean:.2f}" for mean in each.mean(axis=1))]
        if len(columns) > 1:
            cells.append(with_interval(columns[1] - columns[0], signed=True))
        table.add_row(place, *cells)
    minutes = [
        ", ".join((run / "minutes.txt").read_text().strip() for run in folders) for folders in runs.values()
    ]
    table.add_row("minutes per cell", *(cell for text in minutes for cell in ("", text)))
    Console(width=160).print(table)


def with_interval(values: np.ndarray, signed: bool = False) -> str:
    """Format the mean over games, ± half the width of its 95 % interval."""
    low, high = bootstrap_intervals(values[:, None])[0]
    return f"{values.mean():{'+' if signed else ''}.2f} ±{(high - low) / 2:.2f}"


if __name__ == "__main__":
    main()
