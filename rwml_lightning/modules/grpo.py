"""The GRPO update that both stages share: from scored samples to one optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from rwml_lightning.functional import (
    Checkpointing,
    MicroBatch,
    clipped_surrogate,
    kl_penalty,
    micro_batches,
    packed_logprobs,
    token_weights,
    truncated_importance_weights,
)
from rwml_lightning.modules.adapters import LoRA, adapter_values, adapters_at
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.loading import Dtype, load_policy
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import Completion, Label


@dataclass(frozen=True)
class Sample:
    """One sampled text to learn from.

    Args:
        name: What errors call it.
        prompt_ids: Tokens that are read, never trained on.
        completion: Tokens that the policy sampled.
        advantage: Its worth against its group.
    """

    name: str
    prompt_ids: tuple[int, ...]
    completion: Completion
    advantage: float


@dataclass(frozen=True)
class GRPO:
    """Settings of group-relative policy optimisation (arXiv 2402.03300).

    Args:
        clip_low: How far the ratio to the old policy may fall below 1.
        clip_high: How far it may rise above 1.
        num_iterations: Optimizer steps on each rollout; the clip matters from the second on.
        advantage_normalisation: ``mean_std`` (the paper's), ``mean`` or ``leave_one_out``.
        loss_normalisation: Mean per ``sequence`` and then over sequences, over all ``token``s of the step, or by a
            ``constant`` length.
        loss_constant: Length for ``constant``, in tokens.
        kl_coefficient: Weight of the KL penalty towards the policy at the start; 0 needs no reference policy.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        importance_cap: Largest weight that corrects generator to trainer; ``null`` corrects nothing.
        max_staleness: Oldest policy version to train on, in optimizer steps behind the current one.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    num_iterations: int = 1
    advantage_normalisation: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    loss_normalisation: Literal["sequence", "token", "constant"] = "sequence"
    loss_constant: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: float | None = 2.0
    max_staleness: int = 0

    def __post_init__(self) -> None:
        if (self.loss_constant is not None) != (self.loss_normalisation == "constant"):
            raise ValueError(
                "model.grpo.loss_constant goes with model.grpo.loss_normalisation 'constant', and only with it"
            )
        if self.num_iterations < 1:
            raise ValueError(f"model.grpo.num_iterations is {self.num_iterations}; it must be at least 1")


class GRPOModule(PolicyModule):
    """Group-relative policy optimisation (arXiv 2402.03300) over a prefix tree of the step's samples.

    Args:
        model: See :class:`PolicyModule`, as for the next seven.
        init_from: Weights of an earlier stage (exported folder or Lightning checkpoint).
        lora: Adapters to train; ``null`` trains every weight.
        dtype: Dtype of the weights.
        gradient_checkpointing: What the backward pass computes again to save memory.
        optimizer: AdamW and its schedule.
        max_tokens_per_micro_batch: Token budget of one forward and backward pass.
        head_chunk_size: Positions whose logits exist at once.
        grpo: Settings of the update.
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
        # In a list: neither trained, nor moved, nor saved as a submodule.
        self._reference: list[nn.Module] = []
        self._reference_adapters: dict[str, Tensor] = {}

    @override
    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        super().configure_model()
        if self.grpo.kl_coefficient and self.lora is not None:
            # Before a checkpoint moves the policy on: the reference is where the stage started.
            self._reference_adapters = adapter_values(self.policy)

    @override
    def on_fit_start(self) -> None:
        # Loaded anew, for after a crash the policy has moved on: the reference is where the stage started.
        if self.grpo.kl_coefficient and self.lora is None:
            reference = load_policy(self.model, self.dtype_name, init_from=self.init_from)
            self._reference = [reference.eval().requires_grad_(False).to(self.device)]
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
        """Take ``num_iterations`` optimizer steps on one rollout, or as many as are left of ``trainer.max_steps``.

        Samples without advantage cost nothing unless the KL penalty needs them; they count in the normalisation.

        Args:
            samples: The whole step's samples.
            temperature: What they were sampled at.
            labels: Answers whose likelihood is maximised beside, by the mean over their tokens.
            label_weight: Weight of that in the loss.

        Returns:
            Metrics of the last iteration under ``train/``.

        Raises:
            NonFiniteError: The loss or gradient is not finite; the weights are untouched.
            RuntimeError: A sample is staler than ``max_staleness``.
        """
        self._check_versions(samples)
        step = _StepTensors.of(samples, self.grpo.loss_normalisation, self.grpo.loss_constant, self.device)
        step.weights.mul_(self._rank_scale(samples))
        trained = [i for i, s in enumerate(samples) if self.grpo.kl_coefficient or s.advantage != 0]
        micros = _micro_batches([samples[i] for i in trained], self.max_tokens_per_micro_batch)
        place = torch.tensor(trained, device=self.device)
        metrics: dict[str, float] = {}
        for iteration in range(self.steps_of_batch):
            totals = _Totals()
            for micro in micros:
                micro = micro.to(self.device)
                sequence = place[micro.sequence_index]
                token = step.offsets[sequence] + micro.token_index - step.prompt_lengths[sequence]
                names = sorted({samples[i].name for i in sequence.unique().tolist()})
                loss = self._micro_loss(micro, token, step, temperature, iteration, totals)
                self.check_finite(loss, names)
                self.manual_backward(loss)
            if labels:
                totals.label_loss = self.backward_labels(labels, weight=label_weight)
            learning_rate = float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            norm = self.optimizer_step_checked([samples[i].name for i in trained])
            metrics = totals.metrics() | {"train/grad_norm": norm, "train/learning_rate": learning_rate}
        metrics["train/trained_tokens"] = float(sum(len(samples[i].completion.token_ids) for i in trained))
        return metrics

    def _micro_loss(
        self,
        micro: Any,
        token: Tensor,
        step: _StepTensors,
        temperature: float,
        iteration: int,
        totals: _Totals,
    ) -> Tensor:
        logprobs, entropy = packed_logprobs(
            self.policy, micro, temperature=temperature, chunk_size=self.head_chunk_size
        )
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
            with torch.no_grad(), self._reference_policy() as reference:
                reference_logprobs, _ = packed_logprobs(
                    reference, micro, temperature=temperature, chunk_size=self.head_chunk_size
                )
            kl = kl_penalty(logprobs, reference_logprobs, self.grpo.kl_estimator)
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

    @contextlib.contextmanager
    def _reference_policy(self) -> Any:
        if self._reference:
            yield self._reference[0]
        else:
            with adapters_at(self.policy, self._reference_adapters):
                yield self.policy

    def _check_versions(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            staleness = self.policy_version - sample.completion.policy_version
            if not 0 <= staleness <= self.grpo.max_staleness:
                raise RuntimeError(
                    f"{sample.name} was written by policy version {sample.completion.policy_version}, the trainer is at "
                    f"{self.policy_version}, and model.grpo.max_staleness is {self.grpo.max_staleness}: the generator did not get "
                    "the weights. Is the WeightSync callback there?"
                )

    def _rank_scale(self, samples: Sequence[Sample]) -> float:
        """Turns this rank's normalisation into the whole step's, given that strategies average gradients over ranks."""
        if self.trainer.world_size == 1:
            return 1.0
        by_token = self.grpo.loss_normalisation == "token"
        own = sum(len(s.completion.token_ids) for s in samples) if by_token else len(samples)
        gathered: Any = self.all_gather(torch.tensor(float(own), device=self.device))
        every = gathered.sum().item()
        return own * self.trainer.world_size / max(every, 1.0)


def _micro_batches(samples: Sequence[Sample], max_tokens: int) -> list[MicroBatch]:
    if not samples:
        return []
    sequences = [sample.prompt_ids + sample.completion.token_ids for sample in samples]
    return list(micro_batches(sequences, [len(sample.prompt_ids) for sample in samples], max_tokens))


@dataclass
class _StepTensors:
    """One value a sampled token, sample after sample; one offset and prompt length a sample."""

    offsets: Tensor
    prompt_lengths: Tensor
    advantages: Tensor
    weights: Tensor
    generator_logprobs: Tensor
    old_logprobs: Tensor

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
        )


class _Totals:
    """Token means over a step's micro-batches."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.label_loss: float | None = None
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().sum())
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def metrics(self) -> dict[str, float]:
        means = {f"train/{name}": total / self._counts[name] for name, total in self._sums.items()}
        labels = {} if self.label_loss is None else {"train/label_loss": self.label_loss}
        return {"train/loss": self.loss, **labels, **means}
