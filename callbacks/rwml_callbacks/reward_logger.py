"""What a newcomer looks at: rewards, similarities and seconds by phase, in a CSV file and in every configured logger."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from rwml_callbacks.weight_sync import WeightSync
from rwml_lightning.evaluation import measure_game
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import well_formed
from rwml_lightning.schema import EpisodeBatch, RolloutBatch

log = logging.getLogger(__name__)

_PREDICTIONS = "Is tau_d too strict or too loose for these samples"
_GAMES = "Are the games too hard or too easy for this policy"
_EVALUATIONS = ("val", "change", "forgetting", "probe")
"""First parts of names of what is measured on a step's result; anything else is of the step itself."""


class RewardLogger(L.Callback):
    """Computes each step's metrics and hands them on; ``metrics`` holds the last step's.

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
        self.metrics: dict[str, float] = {}
        self._recent: list[float] = []
        self._begun: set[tuple[str, str]] = set()

    @override
    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.metrics = dict(outputs["metrics"])
        scored = outputs.get("batch")
        if scored is not None:
            plays = isinstance(scored, EpisodeBatch)
            self.metrics = (episode_metrics(scored) if plays else rollout_metrics(scored)) | self.metrics
            zero_variance = self.metrics.get(f"{'policy' if plays else 'wm'}/zero_variance_groups", 0.0)
            self._watch_variance(zero_variance, _GAMES if plays else _PREDICTIONS)
        sync = next((c for c in trainer.callbacks if isinstance(c, WeightSync)), None)  # type: ignore[attr-defined]
        if sync is not None and pl_module.on_policy:
            self.metrics |= {"time/sync": sync.seconds, "train/sync_gap": sync.gap}
        update = self.metrics.get("time/update")
        if update:
            self.metrics["throughput/trained_tokens_per_s"] = self.metrics["train/trained_tokens"] / update
        self.write(trainer, pl_module.stage, self.metrics)

    @override
    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if not trainer.sanity_checking:
            self.write(trainer, pl_module.stage, metrics)

    def write(self, trainer: L.Trainer, stage: str, metrics: Mapping[str, float]) -> None:
        """Append to the CSV file and hand to the loggers."""
        stage, step = well_formed(stage), trainer.global_step
        metrics = {well_formed(name): value for name, value in metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)
        if self.path is None or not metrics:
            return
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

    def _watch_variance(self, zero_variance: float, question: str = _PREDICTIONS) -> None:
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


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Metrics of one world-model rollout batch: ``wm/``, ``time/`` and ``throughput/``.

    Means are over predictions; similarity and parts of the reward are over those that have one.
    """
    predictions = [p for group in batch.groups for p in group.predictions]
    metrics = {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    metrics["wm/dropped_groups"] = float(batch.dropped_groups)
    if not predictions:
        return metrics
    rewards = [p.score.reward for p in predictions]
    similarities = [p.score.similarity for p in predictions if p.score.similarity is not None]
    lengths = [len(p.completion.token_ids) for p in predictions]
    mean = sum(rewards) / len(rewards)
    for name in sorted({name for p in predictions for name in p.score.parts}):
        values = [p.score.parts[name] for p in predictions if name in p.score.parts]
        metrics[f"wm/{name}"] = sum(values) / len(values)
    metrics |= {
        "wm/reward": mean,
        "wm/reward_std": math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)),
        "wm/format": sum(p.score.well_formed for p in predictions) / len(predictions),
        "wm/zero_variance_groups": sum(group.zero_variance for group in batch.groups) / len(batch.groups),
        "wm/completion_tokens": sum(lengths) / len(lengths),
        "wm/cut_off": sum(p.completion.finish_reason == "length" for p in predictions) / len(predictions),
    }
    if similarities:
        metrics["wm/similarity"] = sum(similarities) / len(similarities)
    if batch.seconds.get("generate"):
        metrics["throughput/generated_tokens_per_s"] = sum(lengths) / batch.seconds["generate"]
    return metrics


def episode_metrics(batch: EpisodeBatch) -> dict[str, float]:
    """Metrics of one batch of episodes: ``policy/``, ``time/`` and ``throughput/``.

    Means are over games, so that each counts the same; see :func:`rwml_lightning.evaluation.measure_game`. ``policy/return``
    is what an episode was paid, the penalty for invalid actions included.
    """
    metrics = {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    metrics["policy/dropped_groups"] = float(batch.dropped_groups)
    if not batch.groups:
        return metrics
    games = [measure_game(group) for group in batch.groups]
    for name in dict.fromkeys(name for game in games for name in game):
        if not name.startswith("pass@"):
            metrics[f"policy/{name}"] = fmean(game[name] for game in games if name in game)
    members = [member for group in batch.groups for member in group.members]
    metrics["policy/return"] = fmean(member.total_reward for member in members)
    metrics["policy/zero_variance_groups"] = fmean(group.zero_variance for group in batch.groups)
    if batch.seconds.get("generate"):
        tokens = sum(len(s.completion.token_ids) for member in members for s in member.samples)
        metrics["throughput/generated_tokens_per_s"] = tokens / batch.seconds["generate"]
    return metrics
