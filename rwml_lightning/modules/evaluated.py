"""Evaluation and metrics of every stage: held-out batches in, complete metrics out to loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from rwml_lightning.evaluation import HeldOutBatch, HeldOutPredictions, PlayedGames
from rwml_lightning.modules.observers import MetricsObserver, StepObserver, check_monitored
from rwml_lightning.schema import EpisodeBatch


class EvaluatedModule(L.LightningModule):
    """A module that holds its evaluations, and sends metrics to loggers and callbacks once they are complete."""

    reads: ClassVar[Literal["predictions", "episodes"]]
    """Source of the DataModule that the stage learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.held_out = HeldOutPredictions()
        self.games = PlayedGames()
        self.evaluation_metrics: dict[str, float] = {}
        self._step_metrics: dict[str, float] = {}

    @override
    def on_validation_epoch_start(self) -> None:
        self.held_out.start()
        self.games.start()

    @override
    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    @override
    def validation_step(
        self, batch: HeldOutBatch | EpisodeBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, HeldOutBatch):
            self.held_out.add(batch)
        else:
            self.games.add(batch)

    @override
    def test_step(self, batch: HeldOutBatch | EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        """Log evaluation metrics; a source that the stage does not learn from gets a subgroup of ``prefix``."""
        predictions = prefix if self.reads == "predictions" else f"{prefix}/world_model"
        games = prefix if self.reads == "episodes" else f"{prefix}/games"
        metrics = self.held_out.finish(predictions) | self.games.finish(games)
        self.evaluation_metrics = metrics
        if metrics:
            self.log_dict(metrics, batch_size=1, logger=False)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            check_monitored(self.trainer, {*self.trainer.callback_metrics, *metrics})
        if not self.trainer.sanity_checking:
            self.publish(metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the current training step; for the module and for callbacks in ``on_train_batch_end``."""
        self._step_metrics.update(metrics)
        self.log_dict(dict(metrics), batch_size=1, logger=False)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Send the step's metrics to loggers and callbacks; they are complete, because Lightning calls this hook last."""
        metrics, self._step_metrics = self._step_metrics, {}
        if (batch_idx + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self._log(metrics)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepObserver):
                callback.on_step_metrics(self.trainer, self, metrics, outputs.get("batch"))

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Send the metrics of an evaluation or analysis to loggers and callbacks."""
        self._log(metrics)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MetricsObserver):
                callback.on_metrics(self.trainer, self, metrics)

    def _log(self, metrics: Mapping[str, float]) -> None:
        """Log metrics at the current optimizer step. Lightning would log at batch numbers, and repeat missing metrics."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.trainer.global_step)
