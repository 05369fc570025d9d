"""World-model rollouts: they turn transitions into groups of scored predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from rwml_lightning.answers import extract_answer
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards import NextStateReward
from rwml_lightning.rewards.base import score_checked
from rwml_lightning.rewards.controls import Control
from rwml_lightning.schema import Completion, Group, Prediction, RolloutBatch, Sampling, Transition
from rwml_lightning.seeds import derive_seed

_T = TypeVar("_T")


def member_seeds(
    seed: int, stage: str, step: int, transitions: Sequence[Transition], group_size: int
) -> list[list[int]]:
    """Return the seed of every member of every group. A seed depends only on the position of the member."""
    return [
        [derive_seed(seed, stage, step, transition.transition_id, member) for member in range(group_size)]
        for transition in transitions
    ]


class WorldModelRollouts:
    """Predicts the next state of each transition several times with the policy, and scores the predictions.

    Args:
        policy: Client of the policy that writes the completions.
        reward: Reward that scores the predictions.
        prompt: Template that turns a transition into a prompt.
        seed: Seed of the run. The seed of a sample depends on it and on (stage, step, transition, member).
        control: Uninformative reward that replaces the true one.
    """

    def __init__(
        self,
        policy: PolicyClient,
        reward: NextStateReward,
        prompt: WorldModelPrompt,
        seed: int,
        control: Control | None = None,
    ) -> None:
        self.policy = policy
        self.reward = reward
        self.prompt = prompt
        self.seed = seed
        self.control = control

    def collect(
        self, stage: str, step: int, transitions: Sequence[Transition], group_size: int, sampling: Sampling
    ) -> RolloutBatch:
        """Generate and score one batch of groups, in the order of ``transitions``.

        A group is left out if any of its members has no score.

        Args:
            stage: Name from which seeds derive; training and validation have different names.
            step: Rollout step from which seeds derive.
            transitions: Transitions to predict, one per group.
            group_size: Number of predictions per transition.
            sampling: Temperature and limits.
        """
        start = time.perf_counter()
        prompts = [self.prompt.encode(self.policy.chat, transition) for transition in transitions]
        seeds = member_seeds(self.seed, stage, step, transitions, group_size)
        completions = self.policy.generator.generate(prompts, sampling, seeds)
        generated = time.perf_counter()
        groups = self._score((stage, step), transitions, prompts, completions)
        kept = {group.transition.transition_id for group in groups}
        names = (t.transition_id for t in transitions if t.transition_id not in kept)
        return RolloutBatch(
            step=step,
            policy_version=self.policy.generator.policy_version,
            groups=groups,
            temperature=sampling.temperature,
            dropped=tuple(f"{name}: a member has no score" for name in names),
            seconds={"generate": generated - start, "reward": time.perf_counter() - generated},
        )

    def _score(
        self,
        position: tuple[str, int],
        transitions: Sequence[Transition],
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[Sequence[Completion]],
    ) -> tuple[Group, ...]:
        flat = [completion for group in completions for completion in group]
        texts = [self.policy.chat.decode(completion) for completion in flat]
        in_thinking = [
            self.policy.chat.in_thinking(ids)
            for ids, group in zip(prompts, completions, strict=True)
            for _ in group
        ]
        answers = [extract_answer(text, inside) for text, inside in zip(texts, in_thinking, strict=True)]
        owners = [t for t, group in zip(transitions, completions, strict=True) for _ in group]
        states = [answer.next_state for answer in answers]
        sizes = [len(group) for group in completions]
        scores = _rows(score_checked(self.reward, owners, states), sizes)
        if self.control is not None:
            scores = self.control.apply(self.reward, position, transitions, _rows(states, sizes), scores)
        groups = []
        rows = zip(
            transitions, prompts, completions, _rows(texts, sizes), _rows(answers, sizes), scores, strict=True
        )
        for transition, prompt, *members in rows:
            predictions = tuple(
                Prediction(completion, text, answer.thinking, answer.next_state, score, 0.0, member)
                for member, (completion, text, answer, score) in enumerate(zip(*members, strict=True))
                if score is not None
            )
            if len(predictions) == len(members[0]):
                groups.append(Group(transition, prompt, self.prompt.render(transition), predictions))
        return tuple(groups)


def _rows(flat: Sequence[_T], sizes: Sequence[int]) -> list[list[_T]]:
    """Split a flat list into one row per group."""
    rest = iter(flat)
    return [[next(rest) for _ in range(size)] for size in sizes]
