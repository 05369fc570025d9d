"""What a model learns in the world-model stage: GRPO against SFT at equal time, without the filter, and with control rewards.

    python benchmarks/world_model_cells.py [--cells rwml coin] [--seeds 0 1] [--rewards]

Every cell is a run of the quickstart with world_model_cells.yaml on top: the same transitions, the same initial model (after
a short supervised warm-up) and the paper's threshold reward. Cells are stored in runs/cells/. A finished cell is not repeated,
and an interrupted one continues from its last checkpoint. At the end all models predict the same held-out transitions with the
same seeds; this comparison can be interrupted too. ``--rewards`` adds cells with other rewards. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from rwml_lightning.changed_weights import SafetensorsFolder, change_shares, compare_weights
from rwml_lightning.evaluation import Measured, ModelResult, Result, paired_difference, summarise

ROOT = Path("runs/cells")
CONFIG = ("--config", "configs/quickstart.yaml", "--config", "benchmarks/world_model_cells.yaml")
WARM_UP = "warm-up"
BASE = "package:smollm2-135m-instruct"
SFT = ("--model", "rwml_lightning.modules.WorldModelSFT")
CELLS: dict[str, tuple[str, ...]] = {
    "rwml": (),
    "sft": (*SFT, "--trainer.callbacks", "[]", "--trainer.max_steps", "-1", "--data.predictions.num_passes", "1000", "--data.predictions.prompts_per_step", "8"),
    "no-filter": ("--trainer.callbacks", "[]"),
    "mismatched": ("--control", "mismatched"),
    "coin": ("--control", "coin"),
    "permuted": ("--control", "permuted"),
}  # fmt: skip
"""Settings of each cell; ``sft`` gets as many seconds as ``rwml`` took."""
EMBEDDING = {"embedder": "package:all-minilm-l6-v2", "tau_d": 0.2, "device": "cpu"}
CONTENT = {
    "reward": {
        "class_path": "rwml_lightning.rewards.EmbeddingReward",
        "init_args": {**EMBEDDING, "mode": "cosine"},
    }
}
REWARDS: dict[str, tuple[str, ...]] = {
    "cosine": ("--data.predictions.reward.init_args.mode", "cosine"),
    "tau-0.05": ("--data.predictions.reward.init_args.tau_d", "0.05"),
    "content": ("--data.predictions.reward", json.dumps({"class_path": "rwml_lightning.rewards.ContentReward", "init_args": CONTENT})),
    "contrastive": ("--data.predictions.reward", json.dumps({"class_path": "rwml_lightning.rewards.ContrastiveReward", "init_args": EMBEDDING})),
}  # fmt: skip
WARM_UP_SETTINGS = (
    *SFT, "--model.init_args.init_from", "null", "--model.init_args.optimizer.learning_rate", "1e-4", "--trainer.callbacks", "[]",
    "--data.predictions.num_transitions", "16", "--data.predictions.prompts_per_step", "4",
)  # fmt: skip
LONGEST_RUN = timedelta(hours=1)
"""Time limit for a cell that hangs; a cell takes about five minutes on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--rewards", action="store_true", help="add cells with other rewards")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--held_out", type=int, default=160, help="number of transitions to compare the models on"
    )
    arguments = parser.parse_args()

    cells = {name: CELLS[name] for name in arguments.cells} | (REWARDS if arguments.rewards else {})
    train(WARM_UP, 0, WARM_UP_SETTINGS)
    for seed in arguments.seeds:
        for name, settings in cells.items():
            if name == "sft":
                train("rwml", seed, CELLS["rwml"])
                limit = timedelta(seconds=round(sum(seconds_by_phase(folder("rwml", seed)).values())))
                settings += ("--trainer.max_time", f"00:{limit!s:0>8}")
            train(name, seed, settings)
    runs = {WARM_UP: [folder(WARM_UP, 0)]}
    runs |= {name: [folder(name, seed) for seed in arguments.seeds] for name in cells}
    exports = [str(run / "export") for folders in runs.values() for run in folders]
    print_table(evaluate([BASE, *exports], arguments.held_out), runs)


def folder(name: str, seed: int) -> Path:
    """Return the run folder of a cell. The name of a control's run ends with the control."""
    return ROOT / f"{seed}-{name}"


def train(name: str, seed: int, settings: Sequence[str]) -> None:
    """Run a cell in its own process, unless it is finished."""
    run = folder(name, seed)
    if (run / "export").is_dir():
        return
    print(f"\ncell {run.name}", flush=True)
    start = time.perf_counter()
    own = ("--run.root", str(ROOT), "--run.name", run.name, "--seed_everything", str(seed))
    rwml("fit", *own, *settings)
    if not (run / "export").is_dir():
        raise SystemExit(f"{run} was started with other settings: move it away and start the benchmark again")
    print(f"cell {run.name}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


def rwml(command: str, *settings: str) -> None:
    """Run a command of the package with the config of the cells."""
    line = [sys.executable, "-m", "rwml_lightning", command, *CONFIG, *settings]
    code = subprocess.run(line, check=False, timeout=LONGEST_RUN.total_seconds()).returncode
    if code != 0:
        raise SystemExit(f"exit code {code} of {' '.join(line)}")


def seconds_by_phase(run: Path) -> dict[str, float]:
    """Return the seconds of all steps of a run, by phase."""
    seconds: dict[str, float] = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["name"].startswith("time/"):
                seconds[row["name"]] = seconds.get(row["name"], 0.0) + float(row["value"])
    return seconds


def evaluate(models: Sequence[str], held_out: int) -> dict[str, ModelResult]:
    """Evaluate all models on the same transitions; read results that exist already."""
    output = ROOT / "evaluation"
    validation = (
        "--data.predictions.validation.num_transitions",
        str(held_out),
        "--data.predictions.validation.group_size",
        "2",
    )
    rwml("evaluate", *validation, "--output", str(output), "--models", *models)
    files = sorted(output.glob("*-*.json"), key=lambda file: file.stat().st_mtime)
    found = [ModelResult.from_json(json.loads(file.read_text())) for file in files]
    return {result.model: result for result in found}


def print_table(results: Mapping[str, ModelResult], runs: Mapping[str, Sequence[Path]]) -> None:
    """Print a row per cell, averaged over seeds for each transition, and then the floors."""
    table = Table(box=box.MARKDOWN)
    headings = ("", "under tau_d", "of each seed", "to warm-up", "exact", "of each seed", "ROUGE-L", "well-formed", "changed weights", "minutes")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    start = results[str(runs[WARM_UP][0] / "export")].measured
    base = results[BASE]
    table.add_row("base", *measures(base.results[0]))
    for name, folders in runs.items():
        each = [results[str(run / "export")] for run in folders]
        measured = averaged([one.measured for one in each])
        difference = paired_difference(measured, start)
        low, high = difference.intervals["accuracy"]
        table.add_row(
            name,
            *measures(
                summarise(name, measured),
                [one.results[0] for one in each],
                f"{difference.values['accuracy']:+.2f} ±{(high - low) / 2:.2f}",
            ),
            "" if name == WARM_UP else f"{100 * fmean(changed_share(run) for run in folders):.1f} %",
            f"{fmean(sum(seconds_by_phase(run).values()) for run in folders) / 60:.1f}",
        )
    for floor in base.floors:
        table.add_row(f"floor: {floor.name}", *measures(floor))
    Console(width=200).print(table)


def averaged(seeds: Sequence[Sequence[Measured]]) -> list[Measured]:
    """Average each transition's measures over the models of several seeds."""
    found = [{one.transition_id: one for one in measured} for measured in seeds]
    return [
        replace(
            one, values={name: fmean(f[one.transition_id].values[name] for f in found) for name in one.values}
        )
        for one in seeds[0]
    ]


def measures(result: Result, seeds: Sequence[Result] = (), difference: str = "") -> list[str]:
    """Return the table cells of one result, with the values of its seeds."""

    def cell(name: str) -> str:
        low, high = result.intervals[name]
        return f"{getattr(result, name):.2f} ±{(high - low) / 2:.2f}"

    def each(name: str) -> str:
        return ", ".join(f"{getattr(seed, name):.2f}" for seed in seeds)

    return [
        cell("accuracy"), each("accuracy"), difference, cell("exact"), each("exact"), cell("rouge_l"), cell("well_formed"),
    ]  # fmt: skip


def changed_share(run: Path) -> float:
    """Return the share of scalars that differ from those after the warm-up."""
    before, after = (SafetensorsFolder(path / "export") for path in (folder(WARM_UP, 0), run))
    return change_shares(compare_weights(before, after.items()))["all"]


if __name__ == "__main__":
    main()
