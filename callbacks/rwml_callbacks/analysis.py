"""Base class of callbacks that measure the policy before, during and after training."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from typing_extensions import override

from rwml_callbacks.trace_recorder import TraceRecorder
from rwml_lightning.files import write_json
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.observers import stop_requested
from rwml_lightning.printable import printable
from rwml_lightning.terminal import Terminal, make_table

_Callback = TypeVar("_Callback", bound=L.Callback)


@dataclass(frozen=True)
class Measurement:
    """Result of an analysis of one version of the policy.

    Args:
        metrics: Values by metric name.
        details: Data that the metrics were computed from, as JSON values.
    """

    metrics: Mapping[str, float]
    details: Any


class Analysis(L.Callback, ABC):
    """Measure the policy at the start of a stage, every N steps, and at its end.

    Metrics go to all loggers. Metrics and details are written to the run store and to ``<name>.json`` in the run folder.
    A table is printed at the end of the stage. A resumed stage does not repeat finished measurements.

    Args:
        every_n_steps: Optimizer steps between two measurements; ``None`` measures only at the start and at the end.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    name: ClassVar[str]

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"{type(self).__name__}.every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self.first: dict[str, float] = {}
        self._measured_at = -1

    @abstractmethod
    def measure(self, trainer: L.Trainer, module: PolicyModule) -> Measurement:
        """Measure the current policy. Every rank calls this method, because the weights may be sharded over ranks."""

    def render(self, last: Measurement) -> Table:
        """Return a table of the metrics before and after training."""
        table = make_table(f"{self.name}: before and after training", ("", "before", "after", "change"))
        for name, after in last.metrics.items():
            before = self.first.get(name)
            cells = ("", "") if before is None else (f"{before:.3f}", f"{after - before:+.3f}")
            table.add_row(name.partition("/")[2], cells[0], f"{after:.3f}", cells[1])
        return table

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of the previous step, so that the record and checkpoint of that step are written first.
        last, step, every = self._measured_at, trainer.global_step, self.every_n_steps
        if last < 0 or (every is not None and step // every > last // every):
            self._record(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if stop_requested(trainer):
            return  # a stopped stage can be resumed, so this is not its end
        last = self._record(trainer, pl_module)
        if trainer.is_global_zero:
            Terminal().print(self.render(last))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"measured_at": self._measured_at, "first": self.first}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at, self.first = state_dict["measured_at"], state_dict["first"]

    def _record(self, trainer: L.Trainer, module: L.LightningModule) -> Measurement:
        assert isinstance(module, PolicyModule)
        found = self._found_before(trainer, module.stage) or self.measure(trainer, module)
        self._measured_at = trainer.global_step
        self.first = self.first or dict(found.metrics)
        module.publish(found.metrics)
        self._write(trainer, module.stage, found)
        return found

    def _found_before(self, trainer: L.Trainer, stage: str) -> Measurement | None:
        """Read the measurement of an interrupted run at step 0, where the policy is the same, if training is there."""
        recorder = find(trainer, TraceRecorder)
        if recorder is None or trainer.global_step > 0:
            return None
        found = (
            Measurement(r["metrics"], r["details"])
            for r in self._records(recorder)
            if r["stage"] == stage and r["step"] == 0
        )
        return next(found, None)

    @rank_zero_only
    def _write(self, trainer: L.Trainer, stage: str, found: Measurement) -> None:
        step, recorder = trainer.global_step, find(trainer, TraceRecorder)
        if recorder is None:
            return
        result = {"metrics": dict(found.metrics), "details": found.details}
        recorder.writer.write_evaluation(stage, step, result, name=self.name)
        kept = [r for r in self._records(recorder) if r["stage"] != stage or r["step"] < step]
        write_json(self._file(recorder), [*kept, {"stage": stage, "step": step, **result}])

    def _file(self, recorder: TraceRecorder) -> Path:
        return recorder.path.with_name(printable(f"{self.name}.json"))

    def _records(self, recorder: TraceRecorder) -> list[dict[str, Any]]:
        file = self._file(recorder)
        return json.loads(file.read_text()) if file.exists() else []


def find(trainer: L.Trainer, kind: type[_Callback]) -> _Callback | None:
    """Return the trainer's first callback of a class, or ``None``."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
