"""Callbacks that hear of metrics once they are complete, so that the order of callbacks decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException


@runtime_checkable
class StepObserver(Protocol):
    """A callback that hears of each training step, after every callback has added its metrics to it."""

    def on_step_metrics(
        self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float], batch: Any
    ) -> None:
        """Hear of one step.

        Args:
            trainer: Trainer at work.
            module: Module that took the step.
            metrics: All metrics of the step.
            batch: Rollouts that it learnt from, with their advantages; ``None`` where it learnt from labels.
        """


@runtime_checkable
class MetricsObserver(Protocol):
    """A callback that hears of metrics that belong to no step alone, such as a validation's."""

    def on_metrics(self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float]) -> None:
        """Hear of the metrics of one evaluation or analysis."""


def check_monitored(trainer: L.Trainer, known: Iterable[str]) -> None:
    """Raise a MisconfigurationException where EarlyStopping watches a metric that does not exist; Lightning's own error is none
    of a config.

    Args:
        trainer: Trainer whose callbacks are checked.
        known: Names of all metrics.
    """
    names = list(known)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.strict and callback.monitor not in names:
            nearest = get_close_matches(callback.monitor, names, n=3) or sorted(names)
            raise MisconfigurationException(
                f"EarlyStopping.monitor is {callback.monitor!r}, and no metric has that name at the first validation; did you "
                f"mean {', '.join(nearest)}?"
            )
