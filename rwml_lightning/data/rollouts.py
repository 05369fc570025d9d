"""World-model rollouts: prompts in, scored groups out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rwml_lightning.data.prompts import WorldModelPrompt
from rwml_lightning.generation.base import Generator
from rwml_lightning.rewards import NextStateReward, extract_answer
from rwml_lightning.schema import Completion, Group, Prediction, RolloutBatch, Sampling, Transition
from rwml_lightning.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def member_seeds(
    seed: int, stage: str, step: int, transitions: Sequence[Transition], group_size: int
) -> list[list[int]]:
    """Seed of every member of every group, from its place alone."""
    return [
        [derive_seed(seed, stage, step, transition.transition_id, member) for member in range(group_size)]
        for transition in transitions
    ]


class WorldModelRollouts:
    """Asks the policy for the next state of each transition, several times, and scores the answers.

    Args:
        generator: Writes the completions.
        reward: Scores them.
        prompt: Turns a transition into a prompt.
        tokenizer: The policy's.
        seed: The run's seed; a sample's seed follows from it and (stage, step, transition, member).
    """

    def __init__(
        self,
        generator: Generator,
        reward: NextStateReward,
        prompt: WorldModelPrompt,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ) -> None:
        self.generator = generator
        self.reward = reward
        self.prompt = prompt
        self.tokenizer = tokenizer
        self.seed = seed

    def collect(
        self, stage: str, step: int, transitions: Sequence[Transition], group_size: int, sampling: Sampling
    ) -> RolloutBatch:
        """One batch of groups, in the order of ``transitions``.

        Args:
            stage: Name that seeds derive from; training and validation have different ones.
            step: Rollout step that seeds derive from.
            transitions: One group each.
            group_size: Predictions a transition.
            sampling: Temperature and limits.
        """
        start = time.perf_counter()
        prompts = [self.prompt.encode(self.tokenizer, transition) for transition in transitions]
        seeds = member_seeds(self.seed, stage, step, transitions, group_size)
        completions = self.generator.generate(prompts, sampling, seeds)
        generated = time.perf_counter()
        groups = self._score(transitions, prompts, completions)
        return RolloutBatch(
            step=step,
            policy_version=self.generator.policy_version,
            groups=groups,
            temperature=sampling.temperature,
            seconds={"generate": generated - start, "reward": time.perf_counter() - generated},
        )

    def _score(
        self,
        transitions: Sequence[Transition],
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[Sequence[Completion]],
    ) -> tuple[Group, ...]:
        flat = [completion for group in completions for completion in group]
        texts = self.tokenizer.batch_decode([list(c.token_ids) for c in flat], skip_special_tokens=True)
        answers = [extract_answer(text) for text in texts]
        owners = [t for t, group in zip(transitions, completions, strict=True) for _ in group]
        scores = self.reward.score(owners, [answer.next_state for answer in answers])
        members = [member for group in completions for member in range(len(group))]
        predictions = iter(
            Prediction(completion, text, answer.thinking, answer.next_state, score, 0.0, member)
            for completion, text, answer, score, member in zip(
                flat, texts, answers, scores, members, strict=True
            )
        )
        return tuple(
            Group(transition, prompt, self.prompt.render(transition), tuple(next(predictions) for _ in group))
            for transition, prompt, group in zip(transitions, prompts, completions, strict=True)
        )
