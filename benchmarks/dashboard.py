"""The dashboard on a million predictions, compared with a viewer that loads the same predictions as JSONL.

    python benchmarks/dashboard.py                         # first writes about 4 GB into a temporary folder
    python benchmarks/dashboard.py --folder million   # keeps the files for the next time

Both run as a user starts them, in a pseudo-terminal of 160 x 48. A time is measured from the start, or from the last key, until
the program has written the expected text to the terminal. Memory is the peak of the process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from terminal import Terminal

from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import Filter, GroupQuery, TraceReader, TraceWriter

GROUP_SIZE, GROUPS_PER_STEP = 8, 50
KINDS = ("state_change", "navigation", "opening", "nothing_happens", "look")
WORDS = [
    "you",
    "see",
    "a",
    "the",
    "shelf",
    "drawer",
    "cabinet",
    "countertop",
    "mug",
    "apple",
    "book",
    "lamp",
    "desk",
    "on",
    "in",
    "and",
    "open",
    "closed",
    "pick",
    "up",
    "put",
    "heat",
    "cool",
    "clean",
    "slice",
    "examine",
    "nothing",
    "happens",
    "arrive",
    "at",
    "fridge",
    "microwave",
    "sinkbasin",
    "toaster",
    "pan",
    "pot",
    "spoon",
    "fork",
    "knife",
]
SORTED = ("step", "source", "kind", "action", "reward", "best", "mean", "=")
SEARCHED = "uncommonword"


def make_group(number: int, draw: random.Random) -> Group:
    """Make a group with texts as long as those of a 7B model, about 2 kB per prediction. Its number is its room's name."""

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    real = words(40) + (f" {SEARCHED}" if number % 1000 == 0 else "")
    transition = Transition(
        f"game-{number % 4000}#0/{number % 30}", "rwml/ALFWorld-v0", f"game-{number % 4000}", f"put a {words(3)}",
        (Turn(words(30), words(4)),), f"You are in room {number}. {words(30)}", f"go to {words(2)} {number % 97}",
        real, draw.choice(KINDS), draw.random() < 0.9, draw.random() < 0.7,
    )  # fmt: skip
    predictions = []
    for member in range(GROUP_SIZE):
        thinking, predicted = words(60), words(40)
        similarity = draw.random()
        score = Score(float(similarity > 0.8), similarity, True, {"similarity": similarity})
        completion = Completion((7,) * 150, (-0.5,) * 150, "stop", number // GROUPS_PER_STEP)
        text = f"<think>{thinking}</think><next_state>{predicted}</next_state>"
        predictions.append(Prediction(completion, text, thinking, predicted, score, draw.gauss(0, 1), member))
    return Group(
        transition, (1,) * 300, f"Task: {transition.task} {transition.observation}", tuple(predictions)
    )


def make_groups(count: int, first: int = 0) -> Iterator[Group]:
    """Yield the groups with numbers from ``first`` to ``count`` - 1."""
    return (make_group(number, random.Random(number)) for number in range(first, count))


def write_store(path: Path, num_groups: int) -> None:
    """Write a finished run with ``num_groups`` groups, unless the file exists."""
    if path.exists():
        return
    partial = path.with_name(".partial") / path.name
    with TraceWriter(partial) as writer:
        writer.start_stage("wm_grpo", num_groups // GROUPS_PER_STEP, "")
        for step in track(range(num_groups // GROUPS_PER_STEP), "writing the run store"):
            groups = make_groups((step + 1) * GROUPS_PER_STEP, step * GROUPS_PER_STEP)
            writer.write_step("wm_grpo", step, {"wm/reward": 0.5 + step % 7 / 20, "train/kl": 0.01}, groups)
        writer.set_status("finished")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(path)


def write_jsonl(path: Path, num_groups: int) -> None:
    """Write the same predictions as JSONL with the usual fields of trainers, unless the file exists."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for number, group in enumerate(track(make_groups(num_groups), "writing JSONL", total=num_groups)):
            for one in group.predictions:
                row = {
                    "step": number // GROUPS_PER_STEP, "input": group.prompt, "output": one.text,
                    "gts": group.transition.next_state, "score": one.score.reward, "kind": group.transition.kind,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
    partial.rename(path)


@dataclass
class Measured:
    """Seconds by operation, and peak memory in MB."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: float = 0.0

    def add(self, name: str, seconds: float) -> None:
        """Add a time of an operation."""
        self.seconds.setdefault(name, []).append(seconds)


def measure_dashboard(store: Path, num_groups: int, num_keys: int) -> Measured:
    """Measure the start, keys, sorting by each column, filters and search."""
    measured = Measured()
    with TraceReader(store) as reader:
        sought = len(reader.group_ids(GroupQuery(search=SEARCHED)))
        filtered = {
            condition: len(reader.group_ids(GroupQuery(filters=(Filter(*parts),))))
            for condition, parts in {
                "reward>0.3": ("mean_reward", ">", 0.3),
                "kind=opening": ("kind", "=", "opening"),
                "task~lamp": ("task", "contains", "lamp"),
            }.items()
        }
    last = num_groups - 1
    with Terminal([sys.executable, "-m", "rwml_tui", str(store)]) as terminal:
        measured.add("first frame", terminal.wait_for(f"room {last}."))
        for number in range(1, num_keys + 1):
            measured.add("key to frame", terminal.send("down", f"room {last - number}."))
        terminal.send("home", f"room {last}.")
        for name in (*SORTED[1:], SORTED[0]):
            measured.add(f"sort by {name}", terminal.send("s", f"{name}↓"))
        for condition, count in filtered.items():
            terminal.type("/" + condition[:-1])
            measured.add(
                f"filter {condition}", terminal.send(condition[-1], f"{count:,} of {num_groups:,} groups")
            )
            terminal.send("ctrl+u", f" {num_groups:,} groups")
            terminal.send("enter", None)
            time.sleep(0.3)  # until the list has the focus
        terminal.type("/" + SEARCHED[:-1])
        measured.add(
            f"search {SEARCHED}", terminal.send(SEARCHED[-1], f"{sought:,} of {num_groups:,} groups")
        )
        measured.peak_mb = terminal.peak_mb
    return measured


def measure_peer(file: Path, num_keys: int) -> Measured:
    """Measure the start, keys and search of the JSONL viewer."""
    measured = Measured()
    viewer = Path(__file__).with_name("jsonl_viewer.py")
    with Terminal([sys.executable, str(viewer), str(file)], seconds=600) as terminal:
        measured.add("first frame", terminal.wait_for("record 1 of"))
        for number in range(2, num_keys + 2):
            measured.add("key to frame", terminal.send("n", f"record {number} of"))
        terminal.type("/" + SEARCHED)
        measured.add(f"search {SEARCHED}", terminal.send("enter", "found"))
        measured.peak_mb = terminal.peak_mb
    return measured


def measure_following(store: Path, num_groups: int, step_seconds: float, num_steps: int) -> dict[str, float]:
    """Measure the cost of a dashboard that follows a live run: longer writes of the run, and processor time.

    Returns:
        Seconds per step, by name.
    """

    def write(first: int) -> Iterator[float]:
        for step in range(first, first + num_steps):
            prepared = list(make_groups(num_groups + 6 * step + 6, num_groups + 6 * step))
            start = time.perf_counter()
            writer.write_step("later", step, {"wm/reward": 0.5}, prepared)
            yield time.perf_counter() - start
            time.sleep(max(step_seconds - (time.perf_counter() - start), 0))

    with TraceWriter(store) as writer:
        writer.start_stage("later", 1000, "")
        writer.set_status("running")
        alone = statistics.fmean(write(0))
        with Terminal([sys.executable, "-m", "rwml_tui", str(store)]) as terminal:
            terminal.wait_for("following")
            time.sleep(3)
            before = terminal.cpu_seconds
            watched = statistics.fmean(write(num_steps))
            processor = (terminal.cpu_seconds - before) / num_steps
        writer.set_status("finished")
    return {"write, alone": alone, "write, followed": watched, "processor time of the dashboard": processor}


def main() -> None:
    """Write the files, measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="folder of the store and the JSONL file (default: a temporary one)"
    )
    parser.add_argument("--num_predictions", type=int, default=1_000_000)
    parser.add_argument("--num_keys", type=int, default=50)
    parser.add_argument(
        "--step_seconds", type=float, default=16.0, help="seconds per step of the live run (quickstart: 16)"
    )
    parser.add_argument("--num_steps", type=int, default=3, help="steps of the live run, alone and followed")
    parser.add_argument("--no_peer", action="store_true", help="skip the JSONL viewer")
    chosen = parser.parse_args()
    num_groups = chosen.num_predictions // GROUP_SIZE // GROUPS_PER_STEP * GROUPS_PER_STEP
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        store, file = folder / "million" / "trace.db", folder / "million.jsonl"
        write_store(store, num_groups)
        ours = measure_dashboard(store, num_groups, chosen.num_keys)
        columns = {"rwml-tui": ours}
        if not chosen.no_peer:
            write_jsonl(file, num_groups)
            columns["JSONL, all loaded"] = measure_peer(file, chosen.num_keys)
        sizes = {"rwml-tui": store, "JSONL, all loaded": file}
        gigabytes = {name: path.stat().st_size / 1e9 for name, path in sizes.items() if path.exists()}
        live = folder / "live" / "trace.db"
        live.parent.mkdir(exist_ok=True)
        shutil.copy(store, live)
        cost = measure_following(live, num_groups, chosen.step_seconds, chosen.num_steps)
        shutil.rmtree(live.parent)
    report(columns, gigabytes, cost, num_groups * GROUP_SIZE, chosen.step_seconds)


def report(
    columns: dict[str, Measured],
    gigabytes: dict[str, float],
    cost: dict[str, float],
    num_predictions: int,
    step_seconds: float,
) -> None:
    """Print the tables."""
    console = Console()
    table = Table(title=f"{num_predictions:,} predictions; seconds, median and worst")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for what in dict.fromkeys(what for one in columns.values() for what in one.seconds):
        cells = [one.seconds.get(what) for one in columns.values()]
        table.add_row(
            what, *("-" if c is None else f"{statistics.median(c):.3f}  {max(c):.3f}" for c in cells)
        )
    table.add_row("peak memory, MB", *(f"{one.peak_mb:,.0f}" for one in columns.values()))
    table.add_row("file, GB", *(f"{gigabytes[name]:.2f}" for name in columns))
    console.print(table)
    table = Table(title=f"Following a live run: seconds per step of {step_seconds:g} s")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("share of the step", justify="right")
    for what, seconds in cost.items():
        table.add_row(what, f"{seconds:.3f}", f"{seconds / step_seconds:.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
