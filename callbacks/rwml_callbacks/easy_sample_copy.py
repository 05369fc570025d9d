"""The easy-sample filter's copy of the model: what it learns from, what it predicts, and the file of each batch's result."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from rwml_lightning.data.batches import LabelledBatch, StepLoader, label_transitions
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.rollouts import member_seeds
from rwml_lightning.generation import Generator
from rwml_lightning.rewards import extract_answer
from rwml_lightning.schema import Transition


@dataclass(frozen=True, slots=True)
class Answers:
    """What the copy foresaw for some transitions.

    Args:
        transitions: What really happened.
        predictions: Predicted next states of each; ``None`` where an answer had none.
        num_tokens: Tokens generated for them.
        generate_seconds: Seconds the generator took.
    """

    transitions: Sequence[Transition]
    predictions: list[list[str | None]]
    num_tokens: int
    generate_seconds: float


@dataclass(frozen=True)
class Throughput:
    """Sums over all batches: generated tokens, seconds in all, and seconds of them in the generator."""

    num_tokens: int = 0
    seconds: float = 0.0
    generate_seconds: float = 0.0

    def __add__(self, other: Throughput) -> Throughput:
        return Throughput(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second, scoring included."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def generator_share(self) -> float:
        """Share of the time that the generator worked: 1 when scoring costs nothing."""
        return self.generate_seconds / self.seconds if self.seconds else 0.0


class CopyData(L.LightningDataModule):
    """Labels for the copy's training, then answers to the transitions that it judges.

    Args:
        data: The main stage's; its generator, prompt and sampling are used.
        taught: Transitions to learn.
        judged: Transitions to predict.
        batch_size: Transitions an optimizer step.
        num_passes: How often each is learnt.
        num_samples: Predictions a transition.
        prompts_per_batch: Transitions whose predictions are asked for at once.
        seed: Of the order of training, and of the samples.
    """

    def __init__(
        self,
        data: RolloutDataModule,
        taught: Sequence[Transition],
        judged: Sequence[Transition],
        batch_size: int,
        num_passes: int,
        num_samples: int,
        prompts_per_batch: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.data = data
        self.taught = taught
        self.judged = judged
        self.batch_size = batch_size
        self.num_passes = num_passes
        self.num_samples = num_samples
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed

    @property
    def generator(self) -> Generator:
        """Where :class:`WeightSync` brings the copy's weights."""
        return self.data.generator

    def probe_ids(self) -> list[int]:
        """A fixed sequence for comparing generator and copy."""
        return self.data.probe_ids()

    @override
    def train_dataloader(self) -> StepLoader[LabelledBatch]:
        return StepLoader(self.taught, self.batch_size, self._label, self.seed, self.num_passes)

    @override
    def predict_dataloader(self) -> StepLoader[Answers]:
        return StepLoader(self.judged, self.prompts_per_batch, self._answer, None)

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def _label(self, step: int, transitions: Sequence[Transition]) -> LabelledBatch:
        return label_transitions(step, self._own(transitions), self.data.prompt, self._tokenizer)

    def _answer(self, step: int, transitions: Sequence[Transition]) -> Answers:
        own, tokenizer = self._own(transitions), self._tokenizer
        prompts = [self.data.prompt.encode(tokenizer, transition) for transition in own]
        seeds = member_seeds(self.seed, "easy_sample_filter", 0, own, self.num_samples)
        start = time.perf_counter()
        groups = self.generator.generate(prompts, self.data.sampling, seeds)
        seconds = time.perf_counter() - start
        texts = [
            tokenizer.batch_decode([list(c.token_ids) for c in group], skip_special_tokens=True)
            for group in groups
        ]
        return Answers(
            transitions=own,
            predictions=[[extract_answer(text).next_state for text in group] for group in texts],
            num_tokens=sum(len(completion.token_ids) for group in groups for completion in group),
            generate_seconds=seconds,
        )

    @property
    def _tokenizer(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module.tokenizer

    def _own(self, transitions: Sequence[Transition]) -> Sequence[Transition]:
        """This rank's share."""
        assert self.trainer is not None
        return transitions[self.trainer.global_rank :: self.trainer.world_size]


class ScoredParts(L.Callback):
    """Scores a batch's answers while the generator writes the next batch's, and keeps the result of each in a file.

    Args:
        folder: Where the files go; see :func:`read_parts`.
        score: Mean reward by transition id; called in another thread, one batch at a time.
        total: Transitions that all parts will hold.
        heartbeat: Called after each batch, in the trainer's thread.
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
        console = Console(stderr=True)
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
            print(f"easy-sample filter {done}/{self.total}  {text}", file=sys.stderr, flush=True)


def write_part(folder: Path, rewards: dict[str, float], throughput: Throughput) -> None:
    """Write one batch's mean rewards by transition id; the file appears only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(next(iter(rewards)).encode()).hexdigest()[:16]
    partial = folder / f".{name}"
    partial.write_text(json.dumps({"mean_rewards": rewards, "throughput": vars(throughput)}))
    partial.replace(folder / f"{name}.json")


def read_parts(folder: Path) -> tuple[dict[str, float], Throughput]:
    """Mean rewards by transition id of all parts, whatever process or rank wrote them, and their throughput."""
    rewards: dict[str, float] = {}
    throughput = Throughput()
    for file in sorted(folder.glob("[!.]*.json")):
        part = json.loads(file.read_text())
        rewards |= part["mean_rewards"]
        throughput += Throughput(**part["throughput"])
    return rewards, throughput
