"""What every stage shares: the policy, its optimizer, and how a generator gets its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from typing_extensions import override

from rwml_lightning.evaluation import HeldOutBatch, HeldOutPredictions, PlayedGames
from rwml_lightning.functional import (
    Checkpointing,
    micro_batches,
    packed_logprobs,
    token_weights,
)
from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.loading import Dtype, check_same_lora, load_policy
from rwml_lightning.modules.observers import MetricsObserver, StepObserver, check_monitored
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.resuming import reopen_epoch, restore_rng, rng_states
from rwml_lightning.modules.scoring import score_text
from rwml_lightning.schema import EpisodeBatch, Label
from rwml_lightning.weights import model_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        optimizer: AdamW and its schedule.
        max_tokens_per_micro_batch: Token budget of one forward and backward pass.
        head_chunk_size: Positions whose logits exist at once.
    """

    stage: ClassVar[str]
    reads: ClassVar[Literal["predictions", "episodes"]]
    """Source of the DataModule that it learns from."""
    learns: ClassVar[Literal["samples", "labels"]]
    """Whether it learns from what its own weights sampled, or from labels."""
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
        self.held_out = HeldOutPredictions()
        self.games = PlayedGames()
        self.evaluation_metrics: dict[str, float] = {}
        self._step_metrics: dict[str, float] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model)

    @property
    def on_policy(self) -> bool:
        """Whether it learns from what its own weights sampled."""
        return self.learns == "samples"

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
            precision: Precision of the trainer, as Lightning spells it.

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
        if norm > self.optimizer.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optimizer.max_grad_norm, torch.tensor(norm))
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

    @override
    def on_validation_epoch_start(self) -> None:
        self.held_out.start()
        self.games.start()

    @override
    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    @override
    def validation_step(
        self, batch: HeldOutBatch | EpisodeBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, HeldOutBatch):
            self.held_out.add(batch)
        else:
            self.games.add(batch)

    @override
    def test_step(self, batch: HeldOutBatch | EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    def _evaluate(self, prefix: str) -> None:
        """Log what the validation found: what the stage learns under ``prefix``, anything else under a name of its own."""
        predictions = prefix if self.reads == "predictions" else f"{prefix}/world_model"
        games = prefix if self.reads == "episodes" else f"{prefix}/games"
        metrics = self.held_out.finish(self.of_all_ranks, predictions) | self.games.finish(
            self.of_all_ranks, games
        )
        self.evaluation_metrics = metrics
        if metrics:
            self.log_dict(metrics, sync_dist=True, batch_size=1, logger=False)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            check_monitored(self.trainer, {*self.trainer.callback_metrics, *metrics})
        if not self.trainer.sanity_checking:
            self.publish(metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to those of the current training step; for the module itself, and for callbacks' ``on_train_batch_end``."""
        self._step_metrics.update(metrics)
        self.log_dict(dict(metrics), batch_size=1, logger=False)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hand the step's metrics on. Lightning calls this after the same hook of all callbacks, so they are complete."""
        metrics, self._step_metrics = self._step_metrics, {}
        if (batch_idx + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self._log(metrics)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepObserver):
                callback.on_step_metrics(self.trainer, self, metrics, outputs.get("batch"))

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Hand on the metrics of an evaluation or analysis."""
        self._log(metrics)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MetricsObserver):
                callback.on_metrics(self.trainer, self, metrics)

    def _log(self, metrics: Mapping[str, float]) -> None:
        """Give every logger these metrics at the optimizer step; Lightning would count batches, and repeat what one step lacks."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.trainer.global_step)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the batch itself: predictions are the generator's, and the loader has asked it for them."""
        return batch

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
