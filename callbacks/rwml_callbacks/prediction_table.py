"""One W&B table of predictions with real next states, and histograms of rewards, similarities and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import lightning as L
from typing_extensions import override

from rwml_callbacks.wandb_table import GrowingTable, by_member, clip, wandb_logger
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import Group, Prediction, RolloutBatch, Transition


class PredictionTable(GrowingTable):
    """Log the W&B table ``predictions`` and histograms of rewards, similarities and lengths; see :class:`GrowingTable`.

    Args:
        rows_per_step: Maximum number of rows per step or evaluation. The first prediction of each transition comes before
            any second one.
        max_chars: Maximum number of characters per cell.

    Raises:
        ValueError: An argument is below 1.
    """

    name = "predictions"
    batch = RolloutBatch
    evaluation = "held_out"
    columns = (
        "step", "stage", "split", "action", "kind", "predicted", "real", "similarity", "reward", "advantage",
        "well-formed", "policy version",
    )  # fmt: skip

    def __init__(self, rows_per_step: int = 16, max_chars: int = 500) -> None:
        super().__init__(rows_per_step=rows_per_step, max_chars=max_chars)
        self.rows_per_step = rows_per_step
        self.max_chars = max_chars

    @override
    def add(self, trainer: L.Trainer, module: PolicyModule, split: str, groups: Sequence[Group]) -> None:
        """Add the rows of a step to the table, and log its histograms."""
        import wandb

        logger = wandb_logger(trainer)
        if logger is None or not groups:
            return
        place = [trainer.global_step, module.stage, split]
        pairs = by_member([(group.transition, p) for p in group.predictions] for group in groups)
        self.add_rows([(*place, *self._cells(*pair, split)) for pair in islice(pairs, self.rows_per_step)])
        prefix = "wm" if split == "train" else "val"
        histograms: dict[str, Any] = {
            f"{prefix}/{name}": wandb.Histogram(values) for name, values in distributions(groups).items()
        }
        logger.log_metrics(histograms, step=trainer.global_step)

    def _cells(self, transition: Transition, prediction: Prediction, split: str) -> list[Any]:
        score = prediction.score
        predicted = prediction.text if prediction.next_state is None else prediction.next_state
        texts = (transition.action, transition.kind, predicted, transition.next_state)
        advantage = prediction.advantage if split == "train" else None
        version = prediction.completion.policy_version
        return [
            *(clip(text, self.max_chars) for text in texts),
            score.similarity, score.reward, advantage, score.well_formed, version,
        ]  # fmt: skip


def distributions(groups: Iterable[Group]) -> dict[str, list[float]]:
    """Return a step's rewards, completion lengths in tokens and, if any prediction has one, similarities, by name."""
    predictions = [prediction for group in groups for prediction in group.predictions]
    similarities = [p.score.similarity for p in predictions if p.score.similarity is not None]
    values: dict[str, list[float]] = {
        "rewards": [p.score.reward for p in predictions],
        "completion_lengths": [len(p.completion.token_ids) for p in predictions],
    }
    return values | ({"similarities": similarities} if similarities else {})
