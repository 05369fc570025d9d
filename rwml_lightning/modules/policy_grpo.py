"""Policy GRPO: the policy learns to act by playing (arXiv 2602.05842, section 3, policy RL)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from rwml_lightning.data.batches import Label
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.functional import discounted_returns, group_advantages, step_advantages
from rwml_lightning.modules.grpo import GRPOModule, Sample
from rwml_lightning.modules.playing import PlayingModule
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Playthrough


class PolicyGRPO(PlayingModule, GRPOModule):
    """Each turn is a sample that is worth what its episode was worth against the other episodes of its game.

    Turns of an episode and members of a group share what they share in the prefix tree; what the environment wrote is read and
    never trained on. ``training_step`` returns the batch with its advantages under ``batch``, and metrics.

    Args:
        credit: ``episode`` (GRPO): every turn gets its episode's advantage. ``gigpo`` adds how much better the turn's
            discounted return was than that of other turns in the same state (arXiv 2505.10978).
        discount: Of later rewards, in the returns that ``gigpo`` compares.
        step_advantage_weight: Weight of that second part (omega).
        world_model_weight: Weight of a loss that keeps the policy foreseeing: next-state SFT on what the step's own actions did.
            0 is none.
        world_model_transitions: Transitions of a step that it is computed on, a random draw.
        **grpo: See :class:`GRPOModule`.
    """

    stage = "policy_grpo"
    reads = "episodes"

    def __init__(
        self,
        credit: Literal["episode", "gigpo"] = "episode",
        discount: float = 0.95,
        step_advantage_weight: float = 1.0,
        world_model_weight: float = 0.0,
        world_model_transitions: int = 16,
        **grpo: Any,
    ) -> None:
        super().__init__(**grpo)
        if not 0 < discount <= 1:
            raise ValueError(f"model.discount is {discount}; it must be above 0 and at most 1")
        if not world_model_weight >= 0:
            raise ValueError(f"model.world_model_weight is {world_model_weight}; it must not be negative")
        self.credit: Literal["episode", "gigpo"] = credit
        self.discount = discount
        self.step_advantage_weight = step_advantage_weight
        self.world_model_weight = world_model_weight
        self.world_model_transitions = world_model_transitions

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
        metrics = self.update(
            samples, batch.temperature, self._world_model_labels(batch), self.world_model_weight
        )
        seconds = {**batch.seconds, "update": time.perf_counter() - start}
        return {"batch": replace(batch, groups=groups, seconds=seconds), "metrics": metrics}

    def _world_model_labels(self, batch: EpisodeBatch) -> Sequence[Label]:
        if not self.world_model_weight:
            return ()
        data: RolloutDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.label_played(batch, self.world_model_transitions)

    def with_advantages(self, group: EpisodeGroup) -> EpisodeGroup:
        """The same group, every turn with its advantage."""
        rewards = torch.tensor([[float(member.total_reward) for member in group.members]])
        episode = group_advantages(rewards, self.advantage_normalisation)[0]
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
        return step_advantages(torch.cat(returns), anchors, self.advantage_normalisation)
