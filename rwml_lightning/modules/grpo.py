"""The GRPO update of world-model and policy stages: optimizer steps on scored samples."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from rwml_lightning.functional import (
    Checkpointing,
    MicroBatch,
    clipped_surrogate,
    kl_penalty,
    token_weights,
    truncated_importance_weights,
)
from rwml_lightning.modules.adapters import LoRA, adapter_values, adapters_at
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.loading import Dtype, load_policy
from rwml_lightning.modules.moving import moved_to
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.totals import Totals
from rwml_lightning.schema import Completion, Label

if TYPE_CHECKING:
    from rwml_lightning.generation import Generator


@dataclass(frozen=True)
class Sample:
    """One sampled completion with its prompt and advantage.

    Args:
        name: Name of the sample in error messages.
        prompt_ids: Token ids of the prompt, which are not trained on.
        completion: Completion that the policy sampled.
        advantage: Advantage relative to the group.
    """

    name: str
    prompt_ids: tuple[int, ...]
    completion: Completion
    advantage: float


@dataclass(frozen=True)
class GRPO:
    """Settings of group-relative policy optimisation (arXiv 2402.03300).

    Args:
        clip_low: Clipping range of the ratio to the old policy below 1.
        clip_high: Clipping range of the ratio above 1.
        num_iterations: Number of optimizer steps per rollout. Clipping has an effect from the second step on.
        advantage_normalisation: ``mean_std`` (as in the paper), ``mean`` or ``leave_one_out``.
        loss_normalisation: ``sequence`` for the mean per sequence and then over sequences, ``token`` for the mean over
            all tokens of the step, or ``constant`` for division by ``loss_constant``.
        loss_constant: Length in tokens for ``constant``.
        kl_coefficient: Weight of the KL penalty towards the initial policy; 0 needs no reference policy.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        reference_device: Where the reference policy is kept: ``card`` (beside the policy), or ``cpu``, from where it moves to the
            card once a rollout. The log-probabilities are the same. Adapters have no separate reference.
        importance_cap: Maximum importance weight, which corrects the difference between generator and trainer; ``null``
            for no correction.
        max_staleness: Maximum age of a sample's policy version, in optimizer steps behind the current version. If it is at least
            ``num_iterations``, a generator with devices of its own makes the next batch during an update.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    num_iterations: int = 1
    advantage_normalisation: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    loss_normalisation: Literal["sequence", "token", "constant"] = "sequence"
    loss_constant: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    reference_device: Literal["card", "cpu"] = "card"
    importance_cap: float | None = 2.0
    max_staleness: int = 0

    def __post_init__(self) -> None:
        if (self.loss_constant is not None) != (self.loss_normalisation == "constant"):
            raise ValueError(
                "set model.grpo.loss_constant if model.grpo.loss_normalisation is 'constant', and only then"
            )
        if self.num_iterations < 1:
            raise ValueError(f"model.grpo.num_iterations is {self.num_iterations}; it must be at least 1")
        if not (self.max_staleness == 0 or self.max_staleness >= self.num_iterations):
            raise ValueError(
                f"model.grpo.max_staleness is {self.max_staleness}, but a batch that is made during an update is num_iterations = "
                f"{self.num_iterations} steps old: set it to 0 or {self.num_iterations}"
            )
        if self.reference_device not in ("card", "cpu"):
            raise ValueError(
                f"model.grpo.reference_device is {self.reference_device!r}; it must be card or cpu"
            )


class GRPOModule(PolicyModule):
    """Trains with group-relative policy optimisation (arXiv 2402.03300) on a prefix tree of each step's samples.

    Args:
        model: Folder, hub id, or ``package:`` name.
        init_from: Weights of an earlier stage (exported folder or Lightning checkpoint).
        lora: Adapters to train; ``null`` trains every weight.
        dtype: Dtype of the weights.
        gradient_checkpointing: Activations to recompute in the backward pass; see :class:`PolicyModule`.
        optimizer: Settings of AdamW and the learning rate schedule.
        max_tokens_per_micro_batch: Maximum number of tokens of one forward and backward pass.
        head_chunk_size: Number of positions per chunk of the logits.
        grpo: Settings of the GRPO update.
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
        grpo: GRPO = GRPO(),
    ) -> None:
        super().__init__(
            model, init_from, lora, dtype, gradient_checkpointing, optimizer, max_tokens_per_micro_batch, head_chunk_size
        )  # fmt: skip
        self.grpo = grpo
        self.steps_per_batch = grpo.num_iterations
        # A list hides the model from Lightning, which would train, move and save a submodule.
        self._reference: list[nn.Module] = []
        self._reference_adapters: dict[str, Tensor] = {}

    @override
    def may_roll_ahead(self, generator: Generator) -> bool:
        limit = self.trainer.max_steps
        last = 0 <= limit <= self.policy_version + self.steps_per_batch
        return generator.elsewhere and self.grpo.max_staleness > 0 and not last

    @override
    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        super().configure_model()
        if self.grpo.kl_coefficient and self.lora is not None:
            # Copy the adapters before a checkpoint is loaded: the reference is the initial policy of the stage.
            self._reference_adapters = adapter_values(self.policy)

    @override
    def on_fit_start(self) -> None:
        # Load the weights again, because a resumed policy differs from the initial policy, which is the reference.
        if self.grpo.kl_coefficient and self.lora is None:
            reference = load_policy(self.model, self.dtype_name, init_from=self.init_from)
            self.shard(reference)
            self._reference = [reference.eval().requires_grad_(False).to(self._reference_home)]
        self._reference_adapters = {
            name: value.to(self.device) for name, value in self._reference_adapters.items()
        }

    def update(
        self,
        samples: Sequence[Sample],
        temperature: float,
        labels: Sequence[Label] = (),
        label_weight: float = 0.0,
    ) -> dict[str, float]:
        """Take ``num_iterations`` optimizer steps on one rollout, or fewer up to ``trainer.max_steps``.

        Samples with advantage 0 are skipped unless the KL penalty needs them. They count in the normalisation.

        Args:
            samples: All samples of the step.
            temperature: Sampling temperature of the samples.
            labels: Answers for an additional SFT loss, the mean negative log-likelihood per token.
            label_weight: Weight of the SFT loss.

        Returns:
            Metrics of the last iteration under ``train/``.

        Raises:
            NonFiniteError: The loss or gradient is not finite. The weights have not changed.
            RuntimeError: A sample is older than ``max_staleness``.
        """
        staleness = self._mean_staleness(samples)
        step = _StepTensors.of(samples, self.grpo.loss_normalisation, self.grpo.loss_constant, self.device)
        trained = [i for i, s in enumerate(samples) if self.grpo.kl_coefficient or s.advantage != 0]
        chosen = [samples[i] for i in trained]
        micros = self.own_micro_batches(chosen, [sample.completion.token_ids for sample in chosen])
        sample_index = torch.tensor(trained, device=self.device, dtype=torch.long)
        metrics: dict[str, float] = {}
        if self.grpo.kl_coefficient:
            self._score_with_reference(micros, sample_index, step, temperature)
        for iteration in range(self.steps_of_batch):

            def backward(iteration: int = iteration) -> Totals:
                totals = Totals()
                for micro in micros:
                    sequence, token = step.places(micro, sample_index)
                    names = sorted({samples[i].name for i in sequence.unique().tolist()})
                    loss = self._micro_loss(micro, token, step, temperature, iteration, totals)
                    self.check_finite(loss, names)
                    self.manual_backward(loss)
                if labels:
                    totals.label_loss = self.backward_labels(labels, weight=label_weight)
                return totals

            totals = Totals.of_all(self.accumulate(backward))
            learning_rate = float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            norm = self.optimizer_step_checked([samples[i].name for i in trained])
            metrics = totals.metrics() | {"train/grad_norm": norm, "train/learning_rate": learning_rate}
        metrics["train/trained_tokens"] = float(sum(len(samples[i].completion.token_ids) for i in trained))
        metrics["train/staleness"] = staleness
        return metrics

    def _micro_loss(
        self,
        micro: Any,
        token: Tensor,
        step: _StepTensors,
        temperature: float,
        iteration: int,
        totals: Totals,
    ) -> Tensor:
        logprobs, entropy = self.logprobs(self.policy, micro, temperature)
        if iteration == 0:
            step.old_logprobs[token] = logprobs.detach()
        surrogate = clipped_surrogate(
            logprobs,
            step.old_logprobs[token],
            step.advantages[token],
            self.grpo.clip_low,
            self.grpo.clip_high,
        )
        correction = truncated_importance_weights(
            step.old_logprobs[token], step.generator_logprobs[token], self.grpo.importance_cap or float("inf")
        )
        terms = surrogate.loss
        if self.grpo.importance_cap is not None:
            terms = terms * correction.weights
        if self.grpo.kl_coefficient:
            kl = kl_penalty(logprobs, step.reference_logprobs[token], self.grpo.kl_estimator)
            totals.add(kl=kl)
            terms = terms + self.grpo.kl_coefficient * kl
        loss = (step.weights[token] * terms).sum()
        totals.add(
            entropy=entropy,
            clip_fraction=surrogate.clipped.float(),
            importance_ratio=correction.ratio,
            importance_clipped=(correction.ratio != correction.weights).float(),
        )
        totals.loss += loss.item()
        return loss

    @torch.no_grad()
    def _score_with_reference(
        self, micros: Sequence[MicroBatch], sample_index: Tensor, step: _StepTensors, temperature: float
    ) -> None:
        """Compute the reference's log-probabilities once for all iterations, while there are no gradients in memory."""
        with self._reference_policy() as reference:
            for micro in micros:
                _, token = step.places(micro, sample_index)
                step.reference_logprobs[token] = self.logprobs(reference, micro, temperature).logprobs

    @property
    def _reference_home(self) -> torch.device:
        return self.device if self.grpo.reference_device == "card" else torch.device("cpu")

    @contextlib.contextmanager
    def _reference_policy(self) -> Any:
        if self._reference:
            with moved_to(self.device, self._reference[0]) as reference:
                yield reference
        else:
            with adapters_at(self.policy, self._reference_adapters):
                yield self.policy

    def _mean_staleness(self, samples: Sequence[Sample]) -> float:
        """Return the mean age of the samples in optimizer steps; raise a RuntimeError if one is too old."""
        ages = [self.policy_version - sample.completion.policy_version for sample in samples]
        for sample, staleness in zip(samples, ages, strict=True):
            if not 0 <= staleness <= self.grpo.max_staleness:
                raise RuntimeError(
                    f"{sample.name} was sampled by policy version {sample.completion.policy_version}, the trainer is at "
                    f"{self.policy_version}, and model.grpo.max_staleness is {self.grpo.max_staleness}: the generator did not get "
                    "the weights; check that the WeightSync callback is in the config"
                )
        return sum(ages) / max(len(ages), 1)


@dataclass
class _StepTensors:
    """Tensors of one step: one value per sampled token, sample by sample; one offset and prompt length per sample."""

    offsets: Tensor
    prompt_lengths: Tensor
    advantages: Tensor
    weights: Tensor
    generator_logprobs: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor

    def places(self, micro: MicroBatch, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample and the place in the step of each trained token of a micro-batch."""
        sequence = sample_index[micro.sequence_index]
        return sequence, self.offsets[sequence] + micro.token_index - self.prompt_lengths[sequence]

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        normaliser: Literal["sequence", "token", "constant"],
        constant: float | None,
        device: torch.device,
    ) -> _StepTensors:
        lengths = torch.tensor([len(s.completion.token_ids) for s in samples], dtype=torch.long)
        weights = token_weights(lengths, normaliser, constant) if samples else torch.empty(0)
        advantages = torch.tensor([s.advantage for s in samples])
        logprobs = torch.tensor([p for s in samples for p in s.completion.logprobs])
        return cls(
            offsets=(lengths.cumsum(0) - lengths).to(device),
            prompt_lengths=torch.tensor([len(s.prompt_ids) for s in samples], device=device),
            advantages=advantages.repeat_interleave(lengths).to(device),
            weights=weights.repeat_interleave(lengths).to(device),
            generator_logprobs=logprobs.to(device),
            old_logprobs=torch.zeros_like(logprobs, device=device),
            reference_logprobs=torch.zeros_like(logprobs, device=device),
        )
