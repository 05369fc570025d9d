"""Rewards, similarities, seconds by phase and all other metrics in a CSV file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from rwml_lightning.files import replacing
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import well_formed

log = logging.getLogger(__name__)

_QUESTIONS = {
    "wm/zero_variance_groups": "Is tau_d too strict or too loose for these samples",
    "policy/zero_variance_groups": "Are the games too hard or too easy for this policy",
}
_EVALUATIONS = ("val", "change", "forgetting", "probe")
"""Prefixes of metrics that an evaluation or analysis measures after a step; all others belong to the step itself."""


class RewardLogger(L.Callback):
    """Write all metrics to a CSV file, and warn when hardly any group has a variance of rewards.

    The x axis is the optimizer step everywhere. The CSV file has one row per metric (stage, step, name, value), so that
    a resumed run can append any metrics. The steps that a resumed run repeats replace the earlier ones.

    Args:
        path: CSV file; ``None`` writes none.
        low_variance_share: Warn if a smaller share of groups than this had any variance of rewards over ``patience``
            steps.
        patience: Number of steps to average over before a warning. There is at most one warning in this many steps.
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
        """Write a step's metrics, and check how many groups have different rewards."""
        for name, question in _QUESTIONS.items():
            if name in metrics:
                self._watch_variance(metrics[name], question)
        self.write(module.stage, trainer.global_step, metrics)

    @rank_zero_only
    def on_metrics(self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation or analysis."""
        self.write(module.stage, trainer.global_step, metrics)

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics to the CSV file."""
        if self.path is None or not metrics:
            return
        stage = well_formed(stage)
        metrics = {well_formed(name): value for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        family = _family(next(iter(metrics)))
        if (stage, family) not in self._begun and self.path.exists():
            self._drop_repeated(stage, step, family)
        self._begun.add((stage, family))
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "name", "value"])
            writer.writerows([stage, step, name, value] for name, value in metrics.items())

    def _drop_repeated(self, stage: str, step: int, family: str) -> None:
        """Drop rows of an interrupted run from this step on. Evaluations of a step come after its training."""
        assert self.path is not None
        with self.path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        kept = [
            r
            for r in rows
            if r[0] != stage or int(r[1]) < step or (int(r[1]) == step and family not in ("", _family(r[2])))
        ]
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])

    def _watch_variance(self, zero_variance: float, question: str) -> None:
        self._recent.append(1 - zero_variance)
        if len(self._recent) < self.patience:
            return
        share = sum(self._recent) / len(self._recent)
        self._recent.clear()
        if share < self.low_variance_share:
            log.warning(
                "Over the last %d steps only %.0f %% of groups had members with different rewards; the policy learns "
                "nothing from the other groups. %s, or is the temperature too low?",
                self.patience,
                100 * share,
                question,
            )


def _family(name: str) -> str:
    """Return the prefix of the evaluation that a metric comes from, or "" for a metric of the step itself."""
    first = name.partition("/")[0]
    return first if first in _EVALUATIONS else ""
