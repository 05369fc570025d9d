"""Actors of an episode: a model, a random player, the environment's walkthrough, or a list of actions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rwml_lightning.episodes.loop import Act
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Sampling
from rwml_lightning.seeds import derive_seed

_STRETCH_STEPS = 4


class RandomActor:
    """Plays random admissible actions, mixed with steps of the stored walkthrough and with invalid actions.

    The walkthrough reaches events that random play rarely finds, such as heating. The actor follows it in stretches of
    some steps. Each stretch continues where the previous one stopped, so its steps often, but not always, fit the state.

    Args:
        seed: Seed of the run.
        expert_share: Share of stretches that follow the walkthrough.
        invalid_share: Probability that a step plays an action that was admissible before and is not admissible now.
    """

    def __init__(self, seed: int, expert_share: float = 0.0, invalid_share: float = 0.0) -> None:
        self.seed = seed
        self.expert_share = expert_share
        self.invalid_share = invalid_share
        self.needs_walkthrough = expert_share > 0
        self._played: dict[str, int] = {}

    def act(self, states: Sequence[EpisodeState]) -> list[Act]:
        return [Act(self._choose(state)) for state in states]

    def _choose(self, state: EpisodeState) -> str:
        if not state.admissible:
            raise ValueError(
                f"{state.episode_id}: the environment names no admissible actions (info['admissible_actions']), so "
                "data.predictions.collection.behaviour can't be 'random'; set it to 'model'"
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


@dataclass
class ModelActor:
    """Plays actions that the policy writes; :meth:`ActionPrompt.parse` reads them from its completions.

    Episodes with equal prompts, such as all episodes of a group at their first turn, share one prompt in the request. An
    episode ends when its prompt no longer fits the context.

    Args:
        policy: Client of the policy that writes the actions.
        prompt: Template that turns a view into a prompt.
        sampling: Temperature and limits of a turn.
        seed_of: Function that returns the seed of a sample from (episode id, number of the turn from 0).
    """

    needs_walkthrough = False
    policy: PolicyClient
    prompt: ActionPrompt
    sampling: Sampling
    seed_of: Callable[[str, int], int]
    _so_far: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False)

    def act(self, states: Sequence[EpisodeState]) -> list[Act | None]:
        # Drop the tokens of finished episodes. An episode that starts, or starts again, has no tokens yet.
        self._so_far = {
            s.episode_id: self._so_far[s.episode_id]
            for s in states
            if s.turns and s.episode_id in self._so_far
        }
        places_of_prompt: dict[tuple[int, ...], list[int]] = {}
        for place, state in enumerate(states):
            prompt_ids = self.prompt.encode(self.policy.chat, state.view, self._so_far.get(state.episode_id))
            if self.policy.fits(len(prompt_ids) + self.sampling.max_tokens):
                places_of_prompt.setdefault(prompt_ids, []).append(place)
        acts: list[Act | None] = [None] * len(states)
        if not places_of_prompt:
            return acts
        seeds = [
            [self.seed_of(states[place].episode_id, len(states[place].turns)) for place in places]
            for places in places_of_prompt.values()
        ]
        groups = self.policy.generator.generate(list(places_of_prompt), self.sampling, seeds)
        for (prompt_ids, places), group in zip(places_of_prompt.items(), groups, strict=True):
            in_thinking = self.policy.chat.in_thinking(prompt_ids)
            for place, completion in zip(places, group, strict=True):
                action, thinking = self.prompt.parse(self.policy.chat.decode(completion), in_thinking)
                acts[place] = Act(action, thinking, prompt_ids, completion)
                self._so_far[states[place].episode_id] = prompt_ids + completion.token_ids
        return acts


class ExpertActor:
    """Follows the walkthrough of the environment."""

    needs_walkthrough = True

    def act(self, states: Sequence[EpisodeState]) -> list[Act | None]:
        return [_next(state, state.walkthrough) for state in states]


class ListActor:
    """Plays a fixed list of actions for each episode id. An episode ends after the last action of its list."""

    needs_walkthrough = False

    def __init__(self, actions: Mapping[str, Sequence[str]]) -> None:
        self.actions = actions

    def act(self, states: Sequence[EpisodeState]) -> list[Act | None]:
        return [_next(state, self.actions[state.episode_id]) for state in states]


def _next(state: EpisodeState, actions: Sequence[str]) -> Act | None:
    turn = len(state.turns)
    return Act(actions[turn]) if turn < len(actions) else None
