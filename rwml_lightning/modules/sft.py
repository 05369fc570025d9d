"""Supervised fine-tuning on labelled answers, for world-model and policy stages."""

from __future__ import annotations

import time
from typing import Literal

from rwml_lightning.functional import Checkpointing
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.loading import Dtype
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import LabelledBatch


class SFTModule(PolicyModule):
    """Maximises the likelihood of answers. Prefixes that prompts share are computed once.

    Args:
        model: Folder, hub id, or ``package:`` name.
        init_from: Weights of an earlier stage (exported folder or Lightning checkpoint).
        lora: Adapters to train; ``null`` trains every weight.
        dtype: Dtype of the weights.
        gradient_checkpointing: Activations to recompute in the backward pass; see :class:`PolicyModule`.
        optimizer: Settings of AdamW and the learning rate schedule.
        max_tokens_per_micro_batch: Maximum number of tokens of one forward and backward pass.
        head_chunk_size: Number of positions per chunk of the logits.
        loss_normalisation: ``sequence`` for the mean per sequence and then over sequences, ``token`` for the mean over
            all tokens of the step.
    """

    def __init__(
        self,
        model: str,
        init_from: str | None = None,
        lora: LoRA | None = None,
        dtype: Dtype = "float32",
        gradient_checkpointing: Checkpointing = "none",
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        max_tokens_per_micro_batch: int = 4096,
        head_chunk_size: int = 1024,
        loss_normalisation: Literal["sequence", "token"] = "token",
    ) -> None:
        super().__init__(
            model, init_from, lora, dtype, gradient_checkpointing, optimizer, max_tokens_per_micro_batch, head_chunk_size
        )  # fmt: skip
        self.loss_normalisation: Literal["sequence", "token"] = loss_normalisation

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> dict[str, object]:
        start = time.perf_counter()
        total = sum(self.accumulate(lambda: self.backward_labels(batch.labels, self.loss_normalisation)))
        norm = self.optimizer_step_checked([label.name for label in batch.labels])
        seconds = time.perf_counter() - start
        tokens = float(sum(len(label.answer_ids) for label in batch.labels))
        self.record(
            {
                "train/loss": total,
                "train/grad_norm": norm,
                "train/trained_tokens": tokens,
                "time/update": seconds,
                "throughput/trained_tokens_per_s": tokens / seconds,
            }
        )
        return {}
