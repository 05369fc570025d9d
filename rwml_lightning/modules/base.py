"""What every stage shares: the policy, its optimizer, and how a generator gets its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from rwml_lightning.functional import (
    Checkpointing,
    micro_batches,
    packed_logprobs,
    token_weights,
)
from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.loading import Dtype, check_same_lora, load_policy
from rwml_lightning.modules.resuming import LearningRate, keep_settings, reopen_epoch, restore_rng, rng_states
from rwml_lightning.modules.scoring import score_text
from rwml_lightning.weights import model_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rwml_lightning.data.batches import Label

Item = TypeVar("Item")
TRAINABLE_PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite; raised before the optimizer step, so that the weights are still good."""


class PolicyModule(L.LightningModule):
    """A Hugging Face causal language model under manual optimisation: one call, one optimizer step.

    Args:
        model: Folder, hub id, or ``package:`` name.
        init_from: Weights of an earlier stage (exported folder or Lightning checkpoint).
        lora: Adapters to train; ``None`` trains every weight.
        dtype: Dtype of the weights; less than ``float32`` for evaluation, and under ``lora``, whose adapters are float32.
        gradient_checkpointing: What the backward pass computes again to save memory: ``none``, ``selective`` (all but
            matrix products and attention, nearly free) or ``full`` (a third more work).
        learning_rate: Peak learning rate of AdamW.
        learning_rate_schedule: After the warm-up, ``constant``, or down to 0 as ``linear`` or ``cosine`` at the last step.
        learning_rate_warmup_steps: Steps of linear rise at the start.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradients longer than this are shortened to it.
        max_tokens_per_micro_batch: Token budget of one forward and backward pass.
        head_chunk_size: Positions whose logits exist at once.
    """

    stage: ClassVar[str]
    reads: ClassVar[Literal["predictions", "labels", "episodes", "actions"]]
    """What its batches are: rollouts of predictions or of episodes, or labels for next states or for actions."""
    policy: nn.Module
    steps_per_batch = 1

    def __init__(
        self,
        model: str,
        init_from: str | None = None,
        lora: LoRA | None = None,
        dtype: Dtype = "float32",
        gradient_checkpointing: Checkpointing = "none",
        learning_rate: float = 1e-6,
        learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant",
        learning_rate_warmup_steps: int = 0,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_tokens_per_micro_batch: int = 4096,
        head_chunk_size: int = 1024,
    ) -> None:
        super().__init__()
        for name, value in (("learning_rate", learning_rate), ("max_grad_norm", max_grad_norm)):
            if not value > 0:
                raise ValueError(f"model.{name} is {value}; it must be above 0")
        self.automatic_optimization = False
        self.model = model
        self.init_from = init_from
        self.lora = lora
        self.dtype_name: Dtype = dtype
        self.gradient_checkpointing: Checkpointing = gradient_checkpointing
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.learning_rate_warmup_steps = learning_rate_warmup_steps
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.head_chunk_size = head_chunk_size

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model)

    @property
    def on_policy(self) -> bool:
        """Whether it learns from what its own weights sampled."""
        return self.reads in ("predictions", "episodes")

    @property
    def policy_version(self) -> int:
        """Optimizer steps taken: the version of the weights."""
        return self.trainer.global_step

    @property
    def num_planned_steps(self) -> int:
        """Optimizer steps of the whole stage; Lightning counts one a batch."""
        planned = int(self.trainer.estimated_stepping_batches) * self.steps_per_batch
        limit = self.trainer.max_steps
        return min(planned, limit) if limit >= 0 else planned

    @property
    def steps_of_batch(self) -> int:
        """Optimizer steps to take on the current batch: ``steps_per_batch``, fewer where ``trainer.max_steps`` ends the stage."""
        limit = self.trainer.max_steps
        return self.steps_per_batch if limit < 0 else min(self.steps_per_batch, limit - self.policy_version)

    @override
    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = load_policy(
                self.model, self.dtype_name, self.lora, self.gradient_checkpointing, self.init_from
            )

    def check_precision(self, precision: str) -> None:
        """Refuse what would not train as it should; nothing needs to be loaded.

        Args:
            precision: Of the trainer, as Lightning spells it.

        Raises:
            ValueError: Low-precision weights would be trained, or gradients carry a loss scale; says what to set.
        """
        if precision not in TRAINABLE_PRECISIONS:
            why = (
                "under which the norm, the check for infinity and the clipping would see gradients times a loss scale"
                if precision == "16-mixed"
                else "which makes trained weights too coarse for small steps"
            )
            raise ValueError(f"trainer.precision is {precision}, {why}; set bf16-mixed, or 32-true")
        if self.dtype_name != "float32" and self.lora is None:
            raise ValueError(
                f"model.dtype is {self.dtype_name} and model.lora is not set: nearly every step of AdamW is smaller than the "
                "rounding of such weights, so they would hardly train; set model.dtype to float32 and trainer.precision to "
                "bf16-mixed, or set model.lora, whose adapters are float32"
            )

    @override
    def configure_optimizers(self) -> Any:
        self.check_precision(self.trainer.precision)
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.95), fused=True
        )
        optimizer.register_load_state_dict_pre_hook(keep_settings)
        total = self.num_planned_steps
        scheduler = LearningRate(optimizer, lambda step: self._learning_rate_factor(step, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy"] = {
            "stage": self.stage,
            "model": self.model,
            "dtype": self.dtype_name,
            "lora": asdict(self.lora) if self.lora is not None else None,
        }
        checkpoint["rng_states"] = rng_states()  # samples have seeds of their own; dropout has not

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("policy", {}).get("stage")
        if saved != self.stage:
            raise ValueError(
                f"the checkpoint is of stage {saved or 'unknown'}, not {self.stage}: to start from its weights, name it "
                "in model.init_from instead of --ckpt_path"
            )
        lora = checkpoint["policy"]["lora"]
        check_same_lora(lora and LoRA(**lora), self.lora, "the checkpoint")
        reopen_epoch(checkpoint)
        restore_rng(checkpoint["rng_states"])

    def _learning_rate_factor(self, step: int, total: int) -> float:
        warmup = self.learning_rate_warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.learning_rate_schedule == "constant":
            return 1.0
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return (
            1 - progress
            if self.learning_rate_schedule == "linear"
            else 0.5 * (1 + math.cos(math.pi * progress))
        )

    def optimizer_step_checked(self, names: Sequence[str]) -> float:
        """Clip the gathered gradients and step the optimizer and its schedule.

        Gradients that are all absent leave weights and moments as they are, yet the step counts.

        Args:
            names: Samples the gradients come from, for the error.

        Returns:
            Gradient norm before clipping.

        Raises:
            NonFiniteError: The norm is not finite.
        """
        optimizer: Any = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters])) if parameters else 0.0
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient is {norm}; nothing was updated. Samples of this step: {_some(names)}"
            )
        if norm > self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        return norm

    def check_finite(self, loss: Tensor, names: Sequence[str]) -> None:
        """Raise NonFiniteError that names the samples when the loss is not finite."""
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()}; nothing was updated. Samples: {_some(names)}")

    def backward_labels(
        self,
        labels: Sequence[Label],
        normalisation: Literal["sequence", "token"] = "token",
        weight: float = 1.0,
    ) -> float:
        """Add the gradient of the labels' mean negative log-likelihood, times ``weight``; what prompts share is computed once.

        Returns:
            The loss, in nats, before the weight.

        Raises:
            NonFiniteError: It is not finite.
        """
        lengths = torch.tensor([len(label.answer_ids) for label in labels])
        weights = token_weights(lengths, normalisation).to(self.device)
        total = 0.0
        for micro in micro_batches(
            [label.prompt_ids + label.answer_ids for label in labels],
            [len(label.prompt_ids) for label in labels],
            self.max_tokens_per_micro_batch,
        ):
            micro = micro.to(self.device)
            logprobs, _ = packed_logprobs(self.policy, micro, chunk_size=self.head_chunk_size)
            loss = -(weights[micro.sequence_index] * logprobs).sum()
            self.check_finite(loss, [labels[i].name for i in micro.sequence_index.unique().tolist()])
            self.manual_backward(weight * loss)
            total += loss.item()
        return total

    def generator_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's tensors for a generator; see :func:`rwml_lightning.weights.model_tensors`."""
        return model_tensors(self.policy)

    def of_all_ranks(self, items: list[Item]) -> list[Item]:
        """Every rank's items on every rank: an interval is one of all of them, not a mean of the ranks' own."""
        if self.trainer.world_size == 1:
            return items
        shares: list[list[Item]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(shares, items)
        return [item for share in shares for item in share]

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of every token but the first, by the plain path; for the check after a weight update."""
        return score_text(self.policy, token_ids).tolist()


def _some(names: Sequence[str], most: int = 16) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
