"""Protocols of callbacks that receive metrics once they are complete, whatever the order of the callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException


@runtime_checkable
class StepObserver(Protocol):
    """A callback that receives the metrics of each training step, after all callbacks have added theirs."""

    def on_step_metrics(
        self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float], batch: Any
    ) -> None:
        """Receive the metrics of one training step.

        Args:
            trainer: Trainer of the run.
            module: Module that took the step.
            metrics: All metrics of the step.
            batch: Rollouts of the step with their advantages; ``None`` if the stage learns from labels.
        """


@runtime_checkable
class MetricsObserver(Protocol):
    """A callback that receives metrics that do not belong to one training step, such as validation metrics."""

    def on_metrics(self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of one evaluation or analysis."""


def check_monitored(trainer: L.Trainer, known: Iterable[str]) -> None:
    """Check that EarlyStopping monitors an existing metric. The error type of Lightning is not a configuration error.

    Args:
        trainer: Trainer with the callbacks to check.
        known: Names of all metrics.

    Raises:
        MisconfigurationException: No metric has the name in ``monitor``.
    """
    names = list(known)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.strict and callback.monitor not in names:
            nearest = get_close_matches(callback.monitor, names, n=3) or sorted(names)
            raise MisconfigurationException(
                f"EarlyStopping.monitor is {callback.monitor!r}, but no metric of the first validation has that name; did you "
                f"mean {', '.join(nearest)}?"
            )


def stop_requested(trainer: L.Trainer) -> bool:
    """Return whether a user has asked a callback to stop the run."""
    return any(getattr(callback, "stop_requested", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
