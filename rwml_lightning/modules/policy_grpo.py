"""Policy GRPO: the policy learns to act by playing (arXiv 2602.05842, section 3, policy RL)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from rwml_lightning.evaluation import episode_metrics
from rwml_lightning.functional import Checkpointing, discounted_returns, group_advantages, step_advantages
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.grpo import GRPO, GRPOModule, Sample
from rwml_lightning.modules.loading import Dtype
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Playthrough


class PolicyGRPO(GRPOModule):
    """Trains the policy on its turns; the advantage of a turn is its episode's advantage among the episodes of a game.

    Turns of an episode and members of a group share common prefixes in the prefix tree. Text of the environment is not
    trained on. ``training_step`` returns the batch with its advantages under the key ``batch``.

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
        credit: ``episode`` (GRPO) gives every turn the advantage of its episode. ``gigpo`` adds a step advantage, which
            compares the discounted return of the turn with other turns in the same state (arXiv 2505.10978).
        discount: Discount factor of the returns for ``gigpo``.
        step_advantage_weight: Weight of the step advantage (omega).
        world_model_weight: Weight of an additional next-state SFT loss on the transitions of the step's own episodes,
            which keeps the policy able to predict; ``data.episodes.next_state_labels`` configures it. 0 for no such loss.
    """

    stage = "policy_grpo"
    reads = "episodes"
    learns = "samples"

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
        grpo: GRPO = GRPO(),  # noqa: B008
        credit: Literal["episode", "gigpo"] = "episode",
        discount: float = 0.95,
        step_advantage_weight: float = 1.0,
        world_model_weight: float = 0.0,
    ) -> None:
        super().__init__(
            model, init_from, lora, dtype, gradient_checkpointing, optimizer, max_tokens_per_micro_batch, head_chunk_size, grpo
        )  # fmt: skip
        if not 0 < discount <= 1:
            raise ValueError(f"model.discount is {discount}; it must be above 0 and at most 1")
        if not world_model_weight >= 0:
            raise ValueError(f"model.world_model_weight is {world_model_weight}; it must not be negative")
        self.credit: Literal["episode", "gigpo"] = credit
        self.discount = discount
        self.step_advantage_weight = step_advantage_weight
        self.world_model_weight = world_model_weight

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> dict[str, object]:
        start = time.perf_counter()
        groups = tuple(self.with_advantages(group) for group in batch.groups)
        samples = [
            Sample(
                f"{member.episode.episode_id}/{turn}", sample.prompt_ids, sample.completion, sample.advantage
            )
            for group in groups
            for member in group.members
            for turn, sample in enumerate(member.samples)
        ]
        labels = batch.labels if self.world_model_weight else ()
        metrics = self.update(samples, batch.temperature, labels, self.world_model_weight)
        seconds = {**batch.seconds, "update": time.perf_counter() - start}
        scored = replace(batch, groups=groups, seconds=seconds)
        throughput = metrics["train/trained_tokens"] / seconds["update"]
        self.record(episode_metrics(scored) | metrics | {"throughput/trained_tokens_per_s": throughput})
        return {"batch": scored}

    def with_advantages(self, group: EpisodeGroup) -> EpisodeGroup:
        """Return the group with the advantage of every turn."""
        rewards = torch.tensor([[float(member.total_reward) for member in group.members]])
        episode = group_advantages(rewards, self.grpo.advantage_normalisation)[0]
        lengths = [len(member.samples) for member in group.members]
        turns = episode.repeat_interleave(torch.tensor(lengths))
        if self.credit == "gigpo":
            turns = turns + self.step_advantage_weight * self._step_advantages(group.members)
        values = iter(turns.tolist())
        return replace(
            group,
            members=tuple(
                replace(member, samples=tuple(replace(s, advantage=next(values)) for s in member.samples))
                for member in group.members
            ),
        )

    def _step_advantages(self, members: Sequence[Playthrough]) -> torch.Tensor:
        returns = [
            discounted_returns(torch.tensor([float(s.reward) for s in member.samples]), self.discount)
            for member in members
        ]
        anchors = [turn.observation for member in members for turn in member.episode.turns]
        return step_advantages(torch.cat(returns), anchors, self.grpo.advantage_normalisation)
