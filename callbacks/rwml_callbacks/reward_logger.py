"""What a newcomer looks at: rewards, similarities and seconds by phase, in a CSV file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import well_formed

log = logging.getLogger(__name__)

_QUESTIONS = {
    "wm/zero_variance_groups": "Is tau_d too strict or too loose for these samples",
    "policy/zero_variance_groups": "Are the games too hard or too easy for this policy",
}
_EVALUATIONS = ("val", "change", "forgetting", "probe")
"""First parts of names of what is measured on a step's result; anything else is of the step itself."""


class RewardLogger(L.Callback):
    """Writes all metrics to a CSV file, and warns when hardly a group teaches anything.

    The x axis is the optimizer step everywhere. The CSV file has one row a metric (stage, step, name, value), so that a
    resumed run appends to it whatever its metrics are; the steps that it repeats replace those of the run before.

    Args:
        path: CSV file; ``None`` writes none.
        low_variance_share: Warn when fewer groups than this have had any variance of rewards over ``patience`` steps.
        patience: Steps before that warning, and between two of them.
    """

    def __init__(
        self, path: str | Path | None = None, low_variance_share: float = 0.1, patience: int = 10
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.low_variance_share = low_variance_share
        self.patience = patience
        self._recent: list[float] = []
        self._begun: set[tuple[str, str]] = set()

    @rank_zero_only
    def on_step_metrics(
        self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float], batch: Any
    ) -> None:
        """Write a step's metrics, and watch how many groups have different rewards."""
        for name, question in _QUESTIONS.items():
            if name in metrics:
                self._watch_variance(metrics[name], question)
        self.write(module.stage, trainer.global_step, metrics)

    @rank_zero_only
    def on_metrics(self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation or analysis."""
        self.write(module.stage, trainer.global_step, metrics)

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append to the CSV file."""
        if self.path is None or not metrics:
            return
        stage = well_formed(stage)
        metrics = {well_formed(name): value for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        family = _family(next(iter(metrics)))
        if (stage, family) not in self._begun and self.path.exists():
            self._forget(stage, step, family)
        self._begun.add((stage, family))
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "name", "value"])
            writer.writerows([stage, step, name, value] for name, value in metrics.items())

    def _forget(self, stage: str, step: int, family: str) -> None:
        """Drop what an interrupted run recorded from here on; evaluations of a step come after its training."""
        assert self.path is not None
        with self.path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        kept = [
            r
            for r in rows
            if r[0] != stage or int(r[1]) < step or (int(r[1]) == step and family not in ("", _family(r[2])))
        ]
        partial = self.path.with_name(f".{self.path.name}")
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
        partial.replace(self.path)

    def _watch_variance(self, zero_variance: float, question: str) -> None:
        self._recent.append(1 - zero_variance)
        if len(self._recent) < self.patience:
            return
        share = sum(self._recent) / len(self._recent)
        self._recent.clear()
        if share < self.low_variance_share:
            log.warning(
                "Over the last %d steps only %.0f %% of groups had members with different rewards; the others teach "
                "nothing. %s, or is the temperature too low?",
                self.patience,
                100 * share,
                question,
            )


def _family(name: str) -> str:
    """Which evaluation a metric comes from; empty for a step's own."""
    first = name.partition("/")[0]
    return first if first in _EVALUATIONS else ""
