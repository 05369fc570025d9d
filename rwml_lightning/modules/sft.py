"""Supervised fine-tuning on labelled answers, which both kinds of stage share."""

from __future__ import annotations

import time
from typing import Any

import torch

from rwml_lightning.data.batches import LabelledBatch
from rwml_lightning.functional import micro_batches, packed_logprobs, token_weights
from rwml_lightning.modules.base import PolicyModule


class SFTModule(PolicyModule):
    """Maximises the likelihood of answers; what prompts share is computed once.

    Args:
        loss_normalisation: Mean per ``sequence`` and then over sequences, or over all ``token``s of the step.
        **policy: See :class:`PolicyModule`.
    """

    def __init__(self, loss_normalisation: str = "token", **policy: Any) -> None:
        super().__init__(**policy)
        self.loss_normalisation = loss_normalisation

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> dict[str, object]:
        start = time.perf_counter()
        lengths = torch.tensor([len(label.answer_ids) for label in batch.labels])
        weights = token_weights(lengths, self.loss_normalisation).to(self.device)  # type: ignore[arg-type]
        total = 0.0
        for micro in micro_batches(
            [label.prompt_ids + label.answer_ids for label in batch.labels],
            [len(label.prompt_ids) for label in batch.labels],
            self.max_tokens_per_micro_batch,
        ):
            micro = micro.to(self.device)
            logprobs, _ = packed_logprobs(self.policy, micro, chunk_size=self.head_chunk_size)
            loss = -(weights[micro.sequence_index] * logprobs).sum()
            names = [batch.labels[i].name for i in micro.sequence_index.unique().tolist()]
            self.check_finite(loss, names)
            self.manual_backward(loss)
            total += loss.item()
        norm = self.optimizer_step_checked([label.name for label in batch.labels])
        metrics = {
            "train/loss": total,
            "train/grad_norm": norm,
            "train/trained_tokens": float(lengths.sum()),
            "time/update": time.perf_counter() - start,
        }
        return {"metrics": metrics}
