"""Supervised fine-tuning on labelled answers, which both kinds of stage share."""

from __future__ import annotations

import time
from typing import Any, Literal

from rwml_lightning.data.batches import LabelledBatch
from rwml_lightning.modules.base import PolicyModule


class SFTModule(PolicyModule):
    """Maximises the likelihood of answers; what prompts share is computed once.

    Args:
        loss_normalisation: Mean per ``sequence`` and then over sequences, or over all ``token``s of the step.
        **policy: See :class:`PolicyModule`.
    """

    def __init__(self, loss_normalisation: Literal["sequence", "token"] = "token", **policy: Any) -> None:
        super().__init__(**policy)
        self.loss_normalisation: Literal["sequence", "token"] = loss_normalisation

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> dict[str, object]:
        start = time.perf_counter()
        total = self.backward_labels(batch.labels, self.loss_normalisation)
        norm = self.optimizer_step_checked([label.name for label in batch.labels])
        metrics = {
            "train/loss": total,
            "train/grad_norm": norm,
            "train/trained_tokens": float(sum(len(label.answer_ids) for label in batch.labels)),
            "time/update": time.perf_counter() - start,
        }
        return {"metrics": metrics}
