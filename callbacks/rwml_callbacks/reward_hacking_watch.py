"""A callback that warns about signs of reward hacking."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import lightning as L
from typing_extensions import override

from rwml_callbacks.hacking_signs import hacking_metrics
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import RolloutBatch

log = logging.getLogger(__name__)


class RewardHackingWatch(L.Callback):
    """Measure properties of predictions that a reward may miss, and log a warning when they look like reward hacking.

    The callback adds ``hacking/`` metrics (:func:`rwml_callbacks.hacking_signs.hacking_metrics`) to the metrics of each
    step. Every ``patience`` steps it compares their means with the limits below and with the previous ``patience`` steps.

    Args:
        patience: Number of steps to average over. There is at most one warning in this many steps.
        max_length_ratio: Largest ratio of predicted to real words; its inverse is the smallest.
        max_copied: Largest share of predictions that repeat an observation.
        max_content_free: Largest share of predictions that name nothing.
        min_change: Warn if the mean reward rises by more than this while exact match or word overlap falls by more.

    Raises:
        ValueError: ``patience`` is below 1, or ``max_length_ratio`` is not above 1.

    Example::

        >>> from rwml_callbacks import RewardHackingWatch
        >>> trainer = L.Trainer(callbacks=[RewardHackingWatch(patience=20)])
    """

    def __init__(
        self,
        patience: int = 10,
        max_length_ratio: float = 2.0,
        max_copied: float = 0.25,
        max_content_free: float = 0.5,
        min_change: float = 0.05,
    ) -> None:
        if patience < 1:
            raise ValueError(f"RewardHackingWatch.patience is {patience}; it must be at least 1")
        if not max_length_ratio > 1:
            raise ValueError(f"RewardHackingWatch.max_length_ratio is {max_length_ratio}; it must be above 1")
        self.patience = patience
        self.max_length_ratio = max_length_ratio
        self.max_copied = max_copied
        self.max_content_free = max_content_free
        self.min_change = min_change
        self._recent: list[dict[str, float]] = []
        self._before: dict[str, float] = {}

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        scored = outputs.get("batch")
        found = hacking_metrics(scored.groups) if isinstance(scored, RolloutBatch) else {}
        if not found:
            return
        assert isinstance(pl_module, PolicyModule)
        pl_module.record(found)
        self.watch(found | {"reward": fmean(p.score.reward for g in scored.groups for p in g.predictions)})

    def watch(self, step: Mapping[str, float]) -> None:
        """Add one step's ``hacking/`` metrics and mean ``reward``, and check them after every ``patience`` steps."""
        self._recent.append(dict(step))
        if len(self._recent) < self.patience:
            return
        now = {name: fmean(step[name] for step in self._recent) for name in step}
        signs = self._signs(now)
        if signs:
            log.warning(
                "Over the last %d steps %s. The reward may favour something other than correct predictions: read the "
                "predictions (rwml-tui), and see docs/analyses.md for what to change.",
                self.patience,
                "; ".join(signs),
            )
        self._before, self._recent = now, []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent, "before": self._before}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent, self._before = state_dict["recent"], state_dict["before"]

    def _signs(self, now: Mapping[str, float]) -> Sequence[str]:
        """Describe each sign of reward hacking in a clause."""
        signs = []
        ratio = now["hacking/length_ratio"]
        if not 1 / self.max_length_ratio <= ratio <= self.max_length_ratio:
            signs.append(f"predictions were {ratio:.1f} times as long as the real next states")
        if now["hacking/copied"] > self.max_copied:
            signs.append(
                f"{100 * now['hacking/copied']:.0f} % of predictions repeated an observation instead of predicting one"
            )
        if now["hacking/content_free"] > self.max_content_free:
            signs.append(
                f"{100 * now['hacking/content_free']:.0f} % of predictions named nothing where the real next state does"
            )
        if self._before and now["reward"] - self._before["reward"] > self.min_change:
            for name, words in (
                ("exact", "exact matches"),
                ("overlap", "words shared with the real next states"),
            ):
                old, new = self._before[f"hacking/{name}"], now[f"hacking/{name}"]
                if old - new > self.min_change:
                    signs.append(
                        f"the reward rose from {self._before['reward']:.2f} to {now['reward']:.2f} while {words} fell from "
                        f"{100 * old:.0f} to {100 * new:.0f} %"
                    )
        return signs
