"""A run, from its config to an exported model: warm up, prepare, evaluate, train, evaluate, export."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L

from rwml_lightning import parallel
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.interrupts import deferred
from rwml_lightning.loggers import start_logger
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.exporting import write_export
from rwml_lightning.modules.observers import stop_requested
from rwml_lightning.run import RunFolder
from rwml_lightning.schema import Episode
from rwml_lightning.stages import WarmUp, warm_up
from rwml_lightning.trace import TraceWriter

log = logging.getLogger(__name__)


@runtime_checkable
class Preparing(Protocol):
    """A callback with work to do before the policy is loaded into memory."""

    def prepare_run(self, trainer: L.Trainer, model: PolicyModule, data: RolloutDataModule) -> None:
        """Prepare the run. Nothing of the main stage is loaded yet."""


def run(
    trainer: L.Trainer,
    model: PolicyModule,
    data: RolloutDataModule,
    folder: RunFolder,
    warm_up_settings: WarmUp | None,
    warm_up_callbacks: list[L.Callback],
    ckpt_path: str | None = None,
) -> None:
    """Run all stages of the config, or resume them where an earlier run of the same config stopped.

    Args:
        trainer: Trainer of the main stage.
        model: Module of the main stage.
        data: DataModule of all stages.
        folder: Run folder for all results.
        warm_up_settings: Warm-up before the main stage. A stage with ``model.init_from`` skips it, unless it plays episodes.
        warm_up_callbacks: Callbacks of the warm-up.
        ckpt_path: Checkpoint to resume from; ``None`` selects the newest of the folder.
    """
    if folder.finished:
        return
    parallel.connect(trainer, model)
    data.record_collection = partial(record_collection, folder.trace)
    for logger in trainer.loggers:
        start_logger(logger, folder)
    try:
        resume_from = parallel.agree("resume_from", lambda: str(ckpt_path or folder.last_checkpoint or ""))
        if warm_up_settings is not None and (model.init_from is None or model.reads == "episodes"):
            start = warm_up(warm_up_settings, model, data, trainer, folder, warm_up_callbacks)
            if start is None:
                log.warning("stopped during the warm-up on request; run the same command to repeat it")
                return
            model.init_from = str(start)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preparing):
                callback.prepare_run(trainer, model, data)
        if not resume_from:
            trainer.validate(model, data, verbose=False)
        else:
            log.warning("resuming from %s", resume_from)
        with deferred():
            trainer.fit(model, data, ckpt_path=resume_from or None, weights_only=True)
        if stop_requested(trainer):
            trainer.save_checkpoint(folder.checkpoints / f"stopped-{trainer.global_step}.ckpt")
            log.warning("stopped at step %d on request; run the same command to resume", trainer.global_step)
            return
        trainer.validate(model, data, verbose=False)
        write_export(model, folder.export, data.probe_ids())
    finally:
        data.close()


def record_collection(trace: Path, number: int, total: int, episodes: list[Episode]) -> None:
    """Record collected episodes for the dashboard, as steps of the stage ``collect``."""
    with TraceWriter(trace) as writer:
        writer.start_stage("collect", total, "")
        writer.write_step("collect", number, {})
        writer.write_episodes("collect", number, episodes)
