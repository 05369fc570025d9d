"""Scoring of predictions in parallel with generation, with one result file per batch."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from rwml_lightning.files import write_json
from rwml_lightning.printable import printable
from rwml_lightning.schema import Transition
from rwml_lightning.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions of the copy for one batch of transitions.

    Args:
        transitions: Transitions with their real next states.
        predictions: Predicted next states of each transition; ``None`` for an answer without one.
        num_tokens: Number of generated tokens.
        generate_seconds: Seconds that the generator took.
    """

    transitions: Sequence[Transition]
    predictions: list[list[str | None]]
    num_tokens: int
    generate_seconds: float


@dataclass(frozen=True)
class Throughput:
    """Sums over batches: generated tokens, total seconds, and the seconds among them in the generator."""

    num_tokens: int = 0
    seconds: float = 0.0
    generate_seconds: float = 0.0

    def __add__(self, other: Throughput) -> Throughput:
        return Throughput(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of total time, scoring included."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def generator_share(self) -> float:
        """Share of the total time in which the generator worked; 1 if scoring costs no time."""
        return self.generate_seconds / self.seconds if self.seconds else 0.0


class ScoredParts(L.Callback):
    """Score the answers of a batch while the generator works on the next batch, and write each result to a file.

    Args:
        folder: Folder of the result files; see :func:`read_parts`.
        score: Function that returns mean rewards by transition id. It runs in another thread, one batch at a time.
        total: Number of transitions in all parts together.
        heartbeat: Function that is called after each batch in the trainer's thread.
    """

    def __init__(
        self,
        folder: Path,
        score: Callable[[Answers], dict[str, float]],
        total: int,
        heartbeat: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.score = score
        self.total = total
        self.heartbeat = heartbeat
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="easy-samples")
        self._pending: Future[None] | None = None
        console = Terminal(stderr=True)
        columns = (
            TextColumn("predicting with the filter's copy"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = len(read_parts(self.folder)[0])
        self._task = self._progress.add_task("", total=self.total, completed=done)
        if trainer.is_global_zero:
            self._progress.start()
        self._mark = time.perf_counter()

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Answers,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._wait()
        self._pending = self._scorer.submit(self._write, batch, trainer.is_global_zero)
        self.heartbeat()

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wait()
        self._end()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _end(self) -> None:
        self._progress.stop()
        self._scorer.shutdown()

    def _write(self, answers: Answers, show: bool) -> None:
        if not answers.transitions:
            return
        rewards = self.score(answers)
        now = time.perf_counter()
        throughput = Throughput(answers.num_tokens, now - self._mark, answers.generate_seconds)
        self._mark = now
        write_part(self.folder, rewards, throughput)
        text = f"{throughput.tokens_per_s:.0f} tokens/s"
        self._progress.update(self._task, advance=len(rewards), description=text)
        if show and self._progress.disable:
            done = int(self._progress.tasks[0].completed)
            print(printable(f"easy-sample filter {done}/{self.total}  {text}"), file=sys.stderr, flush=True)


def write_part(folder: Path, rewards: dict[str, float], throughput: Throughput) -> None:
    """Write one batch's mean rewards by transition id. The file appears only when it is complete."""
    name = hashlib.sha256(next(iter(rewards)).encode()).hexdigest()[:16]
    write_json(folder / f"{name}.json", {"mean_rewards": rewards, "throughput": vars(throughput)})


def read_parts(folder: Path) -> tuple[dict[str, float], Throughput]:
    """Read the parts of all processes and ranks; return mean rewards by transition id and the total throughput."""
    rewards: dict[str, float] = {}
    throughput = Throughput()
    for file in sorted(folder.glob("[!.]*.json")):
        part = json.loads(file.read_text())
        rewards |= part["mean_rewards"]
        throughput += Throughput(**part["throughput"])
    return rewards, throughput
