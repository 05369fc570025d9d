"""Base class of all stages: the policy, its optimizer, its metrics, and its weights for a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from rwml_lightning import parallel
from rwml_lightning.functional import (
    Checkpointing,
    MicroBatch,
    TokenLogprobs,
    packed_logprobs,
    token_weights,
)
from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules.adapters import LoRA, trial_adapters
from rwml_lightning.modules.evaluated import EvaluatedModule
from rwml_lightning.modules.loading import Dtype, check_same_lora, load_policy
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.resuming import reopen_epoch, restore_rng, rng_states
from rwml_lightning.modules.scoring import score_text
from rwml_lightning.parallel.sharding import SHARDED_LOGPROBS
from rwml_lightning.schema import Label
from rwml_lightning.weights import model_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rwml_lightning.generation import Generator

T = TypeVar("T")
TRAINABLE_PRECISIONS = ("32-true", "bf16-mixed")


class Prompted(Protocol):
    """A sample or a label."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite. It is raised before the optimizer step, so the weights are still valid."""


class PolicyModule(EvaluatedModule):
    """Trains a Hugging Face causal language model with manual optimisation.

    Args:
        model: Folder, hub id, or ``package:`` name.
        init_from: Weights of an earlier stage (exported folder or Lightning checkpoint).
        lora: Adapters to train; ``None`` trains every weight.
        dtype: Dtype of the weights. ``bfloat16`` is trained with ``optimizer.stochastic_rounding``, or with ``lora``, because
            the adapters are float32; ``float16`` with ``lora`` alone. Gradients have the dtype of the weights.
        gradient_checkpointing: Activations to recompute in the backward pass to save memory: ``none``, ``selective``
            (all except matrix products and attention, nearly free) or ``full`` (a third more compute).
        optimizer: Settings of AdamW and the learning rate schedule.
        max_tokens_per_micro_batch: Maximum number of tokens of one forward and backward pass.
        head_chunk_size: Number of positions per chunk of the logits; only one chunk is in memory at a time.
    """

    stage: ClassVar[str]
    learns: ClassVar[Literal["samples", "labels"]]
    """Whether the stage learns from samples of its own policy, or from labels."""
    policy: nn.Module
    steps_per_batch = 1

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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.init_from = init_from
        self.lora = lora
        self.dtype_name: Dtype = dtype
        self.gradient_checkpointing: Checkpointing = gradient_checkpointing
        self.optimizer = optimizer
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.head_chunk_size = head_chunk_size
        self._not_finite: list[tuple[float, list[str]]] = []

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        return load_tokenizer(self.model)

    @property
    def on_policy(self) -> bool:
        """Whether the stage learns from samples of its own policy."""
        return self.learns == "samples"

    @property
    def policy_version(self) -> int:
        """Version of the weights: the number of optimizer steps taken."""
        return self.trainer.global_step

    @property
    def num_planned_steps(self) -> int:
        """Number of optimizer steps of the whole stage. Lightning assumes one per batch."""
        planned = int(self.trainer.estimated_stepping_batches) * self.steps_per_batch
        limit = self.trainer.max_steps
        return min(planned, limit) if limit >= 0 else planned

    @property
    def steps_of_batch(self) -> int:
        """Number of optimizer steps on the current batch: ``steps_per_batch``, or fewer up to ``trainer.max_steps``."""
        limit = self.trainer.max_steps
        return self.steps_per_batch if limit < 0 else min(self.steps_per_batch, limit - self.policy_version)

    def may_roll_ahead(self, generator: Generator) -> bool:
        """Return whether the generator may make the next batch during the current update, with the weights before it."""
        return False

    @override
    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = load_policy(
                self.model, self.dtype_name, self.lora, self.gradient_checkpointing, self.init_from
            )
            self.shard(self.policy)

    def shard(self, policy: nn.Module) -> None:
        """Shard a model over the ranks if the strategy does so."""
        if self.device_mesh is not None:
            parallel.shard(policy, self.device_mesh["data_parallel"])

    def check_precision(self, precision: str) -> None:
        """Check that the precision is suitable for training. This does not need a loaded model.

        Args:
            precision: Precision of the trainer, in Lightning's spelling.

        Raises:
            ValueError: Low-precision weights would be trained, or gradients would contain a loss scale. The message
                names the settings to use.
        """
        if precision not in TRAINABLE_PRECISIONS:
            reasons = {
                "16-mixed": "which multiplies gradients by a loss scale, so that norm, finiteness check and clipping would be wrong",
                "64-true": "in which Lightning converts the tensors of a batch in place, and batches here are frozen",
            }
            why = reasons.get(precision, "which rounds trained weights too coarsely for small steps")
            raise ValueError(f"trainer.precision is {precision}, {why}; set bf16-mixed, or 32-true")
        rounding = self.optimizer.stochastic_rounding
        if self.dtype_name == "float32" and rounding:
            raise ValueError(
                "model.optimizer.stochastic_rounding is true, but model.dtype is float32, which needs no rounding; remove it, or set "
                "model.dtype to bfloat16"
            )
        if self.lora is not None:
            return  # the adapters are float32
        if self.dtype_name == "bfloat16" and not rounding:
            raise ValueError(
                "model.dtype is bfloat16: nearly every step of AdamW is smaller than the rounding of such weights, so they would hardly "
                "train; set model.optimizer.stochastic_rounding to true, or model.dtype to float32 and trainer.precision to bf16-mixed, "
                "or model.lora (its adapters are float32)"
            )
        if self.dtype_name == "float16":
            raise ValueError(
                "model.dtype is float16, in which small gradients are 0; set model.dtype to bfloat16 and "
                "model.optimizer.stochastic_rounding to true, or model.dtype to float32"
            )

    @override
    def configure_optimizers(self) -> Any:
        self.check_precision(self.trainer.precision)
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer, scheduler = self.optimizer.make(trained, self.num_planned_steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy"] = {
            "stage": self.stage,
            "model": self.model,
            "dtype": self.dtype_name,
            "lora": asdict(self.lora) if self.lora is not None else None,
        }
        checkpoint["rng_states"] = rng_states()  # for dropout; samples have separate seeds

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("policy", {}).get("stage")
        if saved != self.stage:
            raise ValueError(
                f"the checkpoint is of stage {saved or 'unknown'}, not {self.stage}: to start from its weights, set "
                "model.init_from to it instead of --ckpt_path"
            )
        lora = checkpoint["policy"]["lora"]
        check_same_lora(lora and LoRA(**lora), self.lora, "the checkpoint")
        reopen_epoch(checkpoint)
        restore_rng(checkpoint["rng_states"])

    def optimizer_step_checked(self, names: Sequence[str]) -> float:
        """Clip the accumulated gradients, and step the optimizer and its schedule.

        If no parameter has a gradient, weights and moments do not change, but the step counts.

        Args:
            names: Names of the samples of this step, for the error message.

        Returns:
            Gradient norm before clipping.

        Raises:
            NonFiniteError: The norm is not finite.
        """
        optimizer: Any = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = _norm([p.grad for p in parameters]) if parameters else 0.0
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient is {norm}; nothing was updated. Samples of this step: {_list_names(names)}"
            )
        if norm > self.optimizer.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optimizer.max_grad_norm, torch.tensor(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        return norm

    def check_finite(self, loss: Tensor, names: Sequence[str]) -> None:
        """Make :meth:`accumulate` raise a NonFiniteError with the names of the samples if the loss is not finite.

        The error is raised on all ranks together: a rank that ends its backward passes early would block the others.
        """
        if not torch.isfinite(loss):
            self._not_finite.append((loss.item(), list(names)))

    def backward_labels(
        self,
        labels: Sequence[Label],
        normalisation: Literal["sequence", "token"] = "token",
        weight: float = 1.0,
    ) -> float:
        """Accumulate the gradient of the labels' mean negative log-likelihood, multiplied by ``weight``.

        Prefixes that prompts share are computed once.

        Returns:
            Loss in nats, without the weight.
        """
        lengths = torch.tensor([len(label.answer_ids) for label in labels])
        weights = token_weights(lengths, normalisation).to(self.device)
        total = 0.0
        for micro in self.own_micro_batches(labels, [label.answer_ids for label in labels]):
            logprobs, _ = self.logprobs(self.policy, micro)
            loss = -(weights[micro.sequence_index] * logprobs).sum()
            self.check_finite(loss, [labels[i].name for i in micro.sequence_index.unique().tolist()])
            self.manual_backward(weight * loss)
            total += loss.item()
        return total

    def own_micro_batches(
        self, prompted: Sequence[Prompted], answers: Sequence[tuple[int, ...]]
    ) -> list[MicroBatch]:
        """Pack the prompts and answers of the whole step, and return the micro-batches of this rank, on its device."""
        sequences = [one.prompt_ids + answer for one, answer in zip(prompted, answers, strict=True)]
        trained_from = [len(one.prompt_ids) for one in prompted]
        own = parallel.own_micro_batches(
            sequences,
            trained_from,
            self.max_tokens_per_micro_batch,
            parallel.world_size(),
            parallel.rank(),
        )
        return [micro.to(self.device) for micro in own]

    def logprobs(self, policy: nn.Module, micro: MicroBatch, temperature: float = 1.0) -> TokenLogprobs:
        """Compute log-probability and entropy of every trained token of a micro-batch with :func:`packed_logprobs`."""
        packed = getattr(policy, SHARDED_LOGPROBS, None) or partial(packed_logprobs, policy)
        return packed(micro, temperature=temperature, chunk_size=self.head_chunk_size)

    def accumulate(self, backward: Callable[[], T]) -> list[T]:
        """Accumulate the gradients of the whole step: every rank calls ``backward``, then gradients are summed over ranks.

        Args:
            backward: Function that runs the backward passes of this rank's micro-batches.

        Returns:
            Results of ``backward`` on all ranks.

        Raises:
            NonFiniteError: The loss of a micro-batch is not finite on some rank.
        """
        self._not_finite = []
        replicated: Any = self.trainer.strategy.model
        no_sync = getattr(
            replicated, "no_sync", None
        )  # Lightning's DDP wrapper would average in every backward pass
        with no_sync() if no_sync is not None else nullcontext():
            result = backward()
        ranks = parallel.gather((result, self._not_finite))
        for loss, names in (found for _, own in ranks for found in own):
            raise NonFiniteError(f"the loss is {loss}; nothing was updated. Samples: {_list_names(names)}")
        parallel.sum_gradients([p for p in self.policy.parameters() if p.requires_grad])
        return [one for one, _ in ranks]

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the batch, because the loader has already requested its predictions from the generator."""
        return batch

    def generator_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's tensors for a generator; see :func:`rwml_lightning.weights.model_tensors`."""
        return model_tensors(self.policy)

    def trial_adapters(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters have an effect; see :func:`rwml_lightning.modules.adapters.trial_adapters`."""
        return trial_adapters(self.policy)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Compute the log-probability of every token except the first, for the check after a weight update."""
        return score_text(self.policy, token_ids).tolist()


def _norm(gradients: Sequence[Tensor]) -> float:
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):  # whose norms would be rounded
        parts = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(parts))
    else:
        norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _list_names(names: Sequence[str], limit: int = 16) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
