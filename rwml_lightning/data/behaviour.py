"""Who acts while transitions are collected: the model itself, or a random player for models too weak to act."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rwml_lightning.data.action_prompts import ActionPrompt
from rwml_lightning.data.chat_format import ChatFormat, fingerprint
from rwml_lightning.data.episodes import EpisodeState
from rwml_lightning.generation import Generator
from rwml_lightning.schema import Sampling
from rwml_lightning.seeds import derive_seed

_STRETCH_STEPS = 4


class Behaviour(Protocol):
    """Chooses actions for all live episodes at once."""

    def act(self, states: Sequence[EpisodeState]) -> Sequence[tuple[str, str] | None]:
        """Return one (action, thinking) a state; ``None`` ends its episode, which is then truncated."""
        ...


class RandomBehaviour:
    """Plays admissible actions at random, with steps of the stored expert solution and invalid actions mixed in.

    The solution leads to what chance alone rarely finds, such as heating. It is followed for stretches of some steps,
    each from where the last one broke off, so that its steps often, but not always, fit the state.

    Args:
        expert_share: Share of stretches that follow the walkthrough.
        invalid_share: Probability that a step is an action which was admissible before and is not now.
        seed: The run's seed.
    """

    def __init__(self, expert_share: float, invalid_share: float, seed: int) -> None:
        self.expert_share = expert_share
        self.invalid_share = invalid_share
        self.seed = seed
        self._played: dict[str, int] = {}

    def act(self, states: Sequence[EpisodeState]) -> list[tuple[str, str]]:
        return [(self._choose(state), "") for state in states]

    def _choose(self, state: EpisodeState) -> str:
        if not state.admissible:
            raise ValueError(
                f"{state.episode_id}: the environment names no admissible actions (info['admissible_actions']), so "
                "data.collection.behaviour can't be 'random'; set it to 'model'"
            )
        if not state.turns:
            self._played[state.episode_id] = 0
        rng = random.Random(derive_seed(self.seed, "act", state.episode_id, len(state.turns)))
        stretch = random.Random(
            derive_seed(self.seed, "stretch", state.episode_id, len(state.turns) // _STRETCH_STEPS)
        )
        if stretch.random() < self.expert_share:
            played = self._played[state.episode_id]
            if played < len(state.walkthrough):
                self._played[state.episode_id] = played + 1
                return state.walkthrough[played]
        if rng.random() < self.invalid_share:
            invalid = sorted(state.known_actions.difference(state.admissible))
            if invalid:
                return rng.choice(invalid)
        return rng.choice(sorted(state.admissible))


class ModelBehaviour:
    """The policy plays, at temperature 1 as in the paper; an answer without an action is played as it stands.

    An episode whose prompt no longer fits the context ends there.

    Args:
        generator: Writes the actions.
        chat: The policy's.
        sampling: Temperature and limits.
        seed: The run's seed.
        prompt: Template.
        context: Most tokens of a prompt and its completion together; ``None`` for no limit.
    """

    def __init__(
        self,
        generator: Generator,
        chat: ChatFormat,
        sampling: Sampling,
        seed: int,
        prompt: ActionPrompt = ActionPrompt(),  # noqa: B008
        context: int | None = None,
    ) -> None:
        self.generator = generator
        self.chat = chat
        self.sampling = sampling
        self.seed = seed
        self.prompt = prompt
        self.context = context
        self._so_far: dict[str, tuple[int, ...]] = {}

    @property
    def policy(self) -> dict[str, Any]:
        """What its prompts and answers depend on beside the collection's settings, as plain values."""
        return {
            "model": getattr(self.generator, "model", None),
            "chat": fingerprint(self.chat),
            "end_tokens": sorted(self.chat.end_token_ids),
            "context": self.context,
        }

    def act(self, states: Sequence[EpisodeState]) -> list[tuple[str, str] | None]:
        # Of episodes that are over nothing is kept; one that begins, perhaps again, has no tokens so far.
        self._so_far = {
            s.episode_id: self._so_far[s.episode_id]
            for s in states
            if s.turns and s.episode_id in self._so_far
        }
        prompts = {
            place: self.prompt.encode(self.chat, state.view, self._so_far.get(state.episode_id))
            for place, state in enumerate(states)
        }
        if self.context is not None:
            room = self.context - self.sampling.max_tokens
            prompts = {place: prompt for place, prompt in prompts.items() if len(prompt) <= room}
        answers: list[tuple[str, str] | None] = [None] * len(states)
        if not prompts:
            return answers
        seeds = [
            [derive_seed(self.seed, "act", states[place].episode_id, len(states[place].turns))]
            for place in prompts
        ]
        completions = self.generator.generate(list(prompts.values()), self.sampling, seeds)
        for (place, prompt), (completion,) in zip(prompts.items(), completions, strict=True):
            self._so_far[states[place].episode_id] = prompt + completion.token_ids
            answers[place] = self.prompt.parse(self.chat.decode(completion), self.chat.in_thinking(prompt))
        return answers


def make_behaviour(
    name: str,
    expert_share: float,
    invalid_share: float,
    max_tokens: int,
    seed: int,
    generator: Generator,
    chat: Callable[[], ChatFormat],
    context: Callable[[], int | None],
    prompt: ActionPrompt,
) -> Behaviour:
    """The player that a config names; chat format and context are looked up, and the template checked, for a model alone."""
    if name == "random":
        return RandomBehaviour(expert_share, invalid_share, seed)
    policy_chat = chat()
    prompt.check(policy_chat)
    return ModelBehaviour(generator, policy_chat, Sampling(max_tokens), seed, prompt, context())
