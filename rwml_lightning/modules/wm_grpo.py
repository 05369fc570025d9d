"""World-model GRPO: the policy learns to predict the next state (arXiv 2602.05842, section 3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from rwml_lightning.evaluation import rollout_metrics
from rwml_lightning.functional import group_advantages
from rwml_lightning.modules.grpo import GRPOModule, Sample
from rwml_lightning.schema import Group, RolloutBatch


class WorldModelGRPO(GRPOModule):
    """Trains the policy with GRPO on rewards for predicted next states; this is the stage that defines RWML.

    There is one update per rollout. ``training_step`` returns the batch with its advantages under the key ``batch``.
    """

    stage = "wm_grpo"
    reads = "predictions"
    learns = "samples"

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> dict[str, object]:
        start = time.perf_counter()
        groups = self.with_advantages(batch.groups)
        samples = [
            Sample(
                f"{group.transition.transition_id}#{p.member}", group.prompt_ids, p.completion, p.advantage
            )
            for group in groups
            for p in group.predictions
        ]
        metrics = self.update(samples, batch.temperature)
        seconds = {**batch.seconds, "update": time.perf_counter() - start}
        scored = replace(batch, groups=groups, seconds=seconds)
        throughput = metrics["train/trained_tokens"] / seconds["update"]
        self.record(rollout_metrics(scored) | metrics | {"throughput/trained_tokens_per_s": throughput})
        return {"batch": scored}

    def with_advantages(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Return the groups with the advantage of every member."""
        if not groups:
            return ()
        rewards = torch.tensor([[p.score.reward for p in group.predictions] for group in groups])
        advantages = group_advantages(rewards, self.grpo.advantage_normalisation).tolist()
        return tuple(
            replace(
                group,
                predictions=tuple(
                    replace(p, advantage=a) for p, a in zip(group.predictions, row, strict=True)
                ),
            )
            for group, row in zip(groups, advantages, strict=True)
        )
