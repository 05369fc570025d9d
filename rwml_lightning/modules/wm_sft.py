"""Next-state supervised fine-tuning: the paper's WM SFT baseline, and the warm-up of small models."""

from __future__ import annotations

import time
from typing import Any

import torch

from rwml_lightning.data.batches import LabelledBatch
from rwml_lightning.functional import micro_batches, packed_logprobs, token_weights
from rwml_lightning.modules.world_model import WorldModelModule


class WorldModelSFT(WorldModelModule):
    """Maximises the likelihood of the real next state after empty thinking (arXiv 2602.05842, section 4, WM SFT).

    Args:
        loss_normalisation: Mean per ``sequence`` and then over sequences, or over all ``token``s of the step.
        **policy: See :class:`PolicyModule`.
    """

    stage = "wm_sft"
    on_policy = False

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
            names = [batch.labels[i].transition.transition_id for i in micro.sequence_index.unique().tolist()]
            self.check_finite(loss, names)
            self.manual_backward(loss)
            total += loss.item()
        norm = self.optimizer_step_checked([label.transition.transition_id for label in batch.labels])
        metrics = {
            "train/loss": total,
            "train/grad_norm": norm,
            "train/trained_tokens": float(lengths.sum()),
            "time/update": time.perf_counter() - start,
        }
        return {"metrics": metrics}
