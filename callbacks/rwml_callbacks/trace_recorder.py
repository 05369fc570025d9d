"""Recording of the run for the dashboard, and execution of the dashboard's commands."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from rwml_lightning import parallel
from rwml_lightning.files import write_json
from rwml_lightning.interrupts import Interrupted, pending
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import printable
from rwml_lightning.schema import Episode, EpisodeBatch, EpisodeGroup, RolloutBatch
from rwml_lightning.trace import TraceWriter

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


class TraceRecorder(L.Callback):
    """Write steps, groups, predictions and held-out results to the run store, and execute commands of its control table.

    Each step is committed at once, so that a killed process loses no recorded step. Held-out results are also written to
    ``evaluations/<stage>-<step>.json`` in the run folder.

    Args:
        path: Path of the run store, ``trace.db`` in the run folder.
        saves_checkpoints: Whether a command of the dashboard saves a checkpoint. A warm-up has none; it is repeated.
    """

    def __init__(self, path: str | Path, saves_checkpoints: bool = True) -> None:
        self.path = Path(path)
        self.saves_checkpoints = saves_checkpoints
        self.stop_requested = False
        self._trained = False
        self._writer: TraceWriter | None = None

    @property
    def writer(self) -> TraceWriter:
        if self._writer is None:
            self._writer = TraceWriter(self.path)
        return self._writer

    @override
    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        config = self.path.parent / "config.yaml"
        self.writer.start_stage(
            pl_module.stage, pl_module.num_planned_steps, config.read_text() if config.exists() else ""
        )
        self.writer.set_status("running")
        self._trained = False

    def on_step_metrics(
        self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float], batch: Any
    ) -> None:
        """Record a step on rank 0, and execute the dashboard's commands on all ranks."""
        self._write_step(trainer, module, metrics, batch)
        self._obey(trainer)

    @rank_zero_only
    def _write_step(
        self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float], batch: Any
    ) -> None:
        stage, step = module.stage, trainer.global_step
        groups = batch.groups if isinstance(batch, RolloutBatch) else ()
        self.writer.write_step(stage, step, metrics, groups)
        if isinstance(batch, EpisodeBatch):
            self.writer.write_episodes(stage, step, episodes_of(batch.groups))

    @override
    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        stage, step = pl_module.stage, trainer.global_step
        metrics = pl_module.evaluation_metrics
        games, held_out = pl_module.games, pl_module.held_out
        found: dict[str, Any] = {}
        if games.groups:
            found["games"] = {"results": [asdict(row) for row in games.results]}
            self.writer.write_evaluation(stage, step, found["games"], name="episodes", metrics=metrics)
            self.writer.write_episodes(stage, step, episodes_of(games.groups), source="held_out")
        if held_out.groups:
            found["predictions"] = {
                "results": [asdict(row) for row in held_out.results],
                "floors": [asdict(row) for row in held_out.floors],
            }
            own = {} if games.groups else metrics
            self.writer.write_evaluation(stage, step, found["predictions"], held_out.groups, metrics=own)
        if not found:
            return
        place = {"stage": stage, "step": step}
        file = printable(f"{stage}-{step}.json")
        write_json(self.path.parent / "evaluations" / file, place | found)
        if self._trained:  # the evaluation after training has reopened the store as running
            self.writer.set_status("finished")

    @override
    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.writer.set_status("stopped" if self.stop_requested else "finished")
        self._trained = True

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        cause = parallel.first_failure(exception)
        if parallel.rank() == 0:
            self.writer.set_status("stopped" if isinstance(exception, Interrupted) else "failed", cause)

    @override
    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _obey(self, trainer: L.Trainer) -> None:
        paused, first = False, parallel.rank() == 0
        while True:
            for command in parallel.broadcast(self.writer.take_commands() if first else []):
                answer = f"at step {trainer.global_step}"
                if command.command == "checkpoint" and not self.saves_checkpoints:
                    answer = "not saved: a warm-up has no checkpoints, and is repeated from its start"
                elif command.command == "checkpoint":
                    path = self.path.parent / "checkpoints" / f"asked-{trainer.global_step}.ckpt"
                    trainer.save_checkpoint(path)
                    answer = f"saved {path.name}"
                elif command.command == "stop":
                    trainer.should_stop = self.stop_requested = True
                    paused = False
                else:
                    paused = command.command == "pause"
                    if first:
                        self.writer.set_status("paused" if paused else "running")
                if first:
                    self.writer.acknowledge(command.id, answer)
                    log.warning("command from the dashboard: %s; %s", command.command, answer)
            if not paused or any(parallel.gather(pending())):
                return
            if first:
                self.writer.heartbeat()
            time.sleep(_POLL_SECONDS)


def episodes_of(groups: Iterable[EpisodeGroup]) -> list[Episode]:
    """Return the episodes of all groups in one list."""
    return [member.episode for group in groups for member in group.members]
