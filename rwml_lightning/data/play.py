"""Policy rollouts: games in, groups of whole episodes out."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rwml_lightning.data.action_prompts import ActionPrompt
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.episodes import EpisodeState, episode_name
from rwml_lightning.envs import EnvironmentPool, Failure, Observation
from rwml_lightning.generation.base import Generator
from rwml_lightning.schema import (
    ActionSample,
    Completion,
    EpisodeBatch,
    EpisodeGroup,
    Playthrough,
    Sampling,
    Transition,
)
from rwml_lightning.seeds import derive_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Game:
    """Which episode to play, how often.

    Args:
        task: Task id; empty for an environment without tasks, where the seed is the game.
        seed: Of the reset.
        split: Of the environment, for evaluation by split.
    """

    task: str
    seed: int
    split: str = ""


@dataclass
class _Running:
    """An episode under way."""

    state: EpisodeState
    samples: list[ActionSample] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    so_far: tuple[int, ...] | None = None


class EpisodePlayer:
    """Lets the policy play several games at once, each several times; every turn of all of them is one batch.

    An episode ends when the environment says so, after ``max_steps`` turns, or when its prompt no longer fits the context: the
    last two are truncated. One whose environment fails is played again from its start in a fresh one, with the same seeds;
    a group that loses a member for good is dropped and counted, never paid 0.

    Args:
        pool: Environments.
        environment: Its name, for records.
        generator: Writes the actions.
        prompt: Turns a state into a prompt.
        chat: The policy's.
        seed: The run's seed; a sample's seed follows from it and (stage, step, game, member, turn).
        context: Most tokens of a prompt and its completion together; ``None`` for no limit.
        success_reward: What the environment's reward is multiplied with.
        invalid_penalty: Taken from what a turn is paid whose action the environment did not accept.
        attempts: How often an episode is played until it is lost.
        max_dropped_share: Stop when more than this share of groups, and more than one, was lost.
    """

    def __init__(
        self,
        pool: EnvironmentPool,
        environment: str,
        generator: Generator,
        prompt: ActionPrompt,
        chat: ChatFormat,
        seed: int,
        context: int | None = None,
        success_reward: float = 1.0,
        invalid_penalty: float = 0.0,
        attempts: int = 2,
        max_dropped_share: float = 0.1,
    ) -> None:
        self.pool = pool
        self.environment = environment
        self.generator = generator
        self.prompt = prompt
        self.chat = chat
        self.seed = seed
        self.context = context
        self.success_reward = success_reward
        self.invalid_penalty = invalid_penalty
        self.attempts = attempts
        self.max_dropped_share = max_dropped_share
        self._last_failure = ""
        self._num_groups = 0
        self._num_dropped = 0

    def collect(
        self,
        stage: str,
        step: int,
        games: Sequence[Game],
        group_size: int,
        sampling: Sampling,
        max_steps: int,
    ) -> EpisodeBatch:
        """One batch of groups, in the order of ``games``.

        Args:
            stage: Name that seeds derive from.
            step: Rollout step that seeds derive from.
            games: One group each.
            group_size: Episodes a game.
            sampling: Temperature and limits of a turn.
            max_steps: Most turns an episode.

        Raises:
            ValueError: Too many groups were lost.
        """
        seconds: dict[str, float] = defaultdict(float)
        version = self.generator.policy_version
        played: dict[tuple[int, int], Playthrough] = {}
        waiting = [(place, member) for place in range(len(games)) for member in range(group_size)]
        for _ in range(self.attempts):
            played |= self._play((stage, step), waiting, games, sampling, max_steps, seconds)
            waiting = [key for key in waiting if key not in played]
        groups = tuple(
            EpisodeGroup(game.task, game.split, tuple(played[place, member] for member in range(group_size)))
            for place, game in enumerate(games)
            if all((place, member) in played for member in range(group_size))
        )
        self._count(games, len(groups), waiting)
        return EpisodeBatch(
            step, version, groups, sampling.temperature, len(games) - len(groups), dict(seconds)
        )

    def _play(
        self,
        position: tuple[str, int],
        keys: Sequence[tuple[int, int]],
        games: Sequence[Game],
        sampling: Sampling,
        max_steps: int,
        seconds: dict[str, float],
    ) -> dict[tuple[int, int], Playthrough]:
        """Episodes by (game's place, member), of those that came to an end without a failure."""
        if not keys:
            return {}
        slots = dict(enumerate(keys))
        begun = self._timed(
            seconds,
            lambda: self.pool.reset_many(
                (slot, games[place].seed, games[place].task or None) for slot, (place, _) in slots.items()
            ),
        )
        live: dict[int, _Running] = {}
        for slot, result in begun.items():
            place, member = slots[slot]
            name = f"{position[0]}-{position[1]}-{place}-{episode_name(games[place].task, member)}"
            if isinstance(result, Failure):
                self._note(name, result)
            else:
                live[slot] = _Running(EpisodeState.begin(name, result))
        played: dict[tuple[int, int], Playthrough] = {}

        def end(slot: int, truncated: bool) -> None:
            running, (place, _) = live.pop(slot), slots[slot]
            episode = running.state.finish(self.environment, games[place].task, games[place].seed)
            played[slots[slot]] = Playthrough(
                replace(episode, truncated=truncated), tuple(running.samples), tuple(running.transitions)
            )

        for turn in range(max_steps):
            start = time.perf_counter()
            prompts = {slot: self._encode(running) for slot, running in live.items()}
            for slot, prompt in list(prompts.items()):
                if self.context is not None and len(prompt) + sampling.max_tokens > self.context:
                    del prompts[slot]
                    end(slot, truncated=True)
            if not live:
                break
            seeds = {slot: self._sample_seed(position, games, slots[slot], turn) for slot in live}
            completions = self._generate(prompts, seeds, sampling)
            actions = {
                slot: self.prompt.parse(self.chat.decode(one), self.chat.in_thinking(prompts[slot]))
                for slot, one in completions.items()
            }
            seconds["generate"] += time.perf_counter() - start
            acting = {slot: action for slot, (action, _) in actions.items()}
            results = self._timed(seconds, lambda acting=acting: self.pool.step_many(acting))  # type: ignore[misc]
            for slot, result in results.items():
                if isinstance(result, Failure):
                    self._note(live.pop(slot).state.episode_id, result)
                    continue
                self._advance(live[slot], actions[slot], result, prompts[slot], completions[slot])
                if result.done:
                    end(slot, result.truncated and not result.terminated)
        for slot in list(live):
            end(slot, truncated=True)
        return played

    def _generate(
        self, prompts: Mapping[int, tuple[int, ...]], seeds: Mapping[int, int], sampling: Sampling
    ) -> dict[int, Completion]:
        """One completion a slot; episodes that read the same, as all of a group do at first, share one prompt."""
        readers: dict[tuple[int, ...], list[int]] = {}
        for slot, prompt in prompts.items():
            readers.setdefault(prompt, []).append(slot)
        answers = self.generator.generate(
            list(readers), sampling, [[seeds[slot] for slot in slots] for slots in readers.values()]
        )
        return {
            slot: completion
            for slots, group in zip(readers.values(), answers, strict=True)
            for slot, completion in zip(slots, group, strict=True)
        }

    def _encode(self, running: _Running) -> tuple[int, ...]:
        return self.prompt.encode(self.chat, running.state.view, running.so_far)

    def _advance(
        self,
        running: _Running,
        acted: tuple[str, str],
        result: Observation,
        prompt: tuple[int, ...],
        completion: Completion,
    ) -> None:
        action, thinking = acted
        transition = running.state.advance(action, result, self.environment, thinking)
        paid = self.success_reward * result.reward - (0.0 if transition.valid else self.invalid_penalty)
        running.transitions.append(transition)
        running.samples.append(ActionSample(prompt, completion, paid))
        running.so_far = prompt + completion.token_ids

    def _sample_seed(
        self, position: tuple[str, int], games: Sequence[Game], key: tuple[int, int], turn: int
    ) -> int:
        place, member = key
        return derive_seed(self.seed, *position, games[place].task, games[place].seed, member, turn)

    def _timed(
        self, seconds: dict[str, float], call: Callable[[], Mapping[int, Observation | Failure]]
    ) -> Mapping[int, Observation | Failure]:
        start = time.perf_counter()
        results = call()
        seconds["env"] += time.perf_counter() - start
        return results

    def _note(self, name: str, failure: Failure) -> None:
        log.warning("episode %s: %s", name, failure.error)
        self._last_failure = f"episode {name}: {failure.line}"

    def _count(self, games: Sequence[Game], num_kept: int, lost: Sequence[tuple[int, int]]) -> None:
        self._num_groups += len(games)
        self._num_dropped += len(games) - num_kept
        if num_kept == len(games):
            return
        names = sorted({games[place].task or str(games[place].seed) for place, _ in lost})
        log.warning("environments failed twice, so their groups are left out: %s", ", ".join(names))
        if self._num_dropped > 1 and self._num_dropped > self.max_dropped_share * self._num_groups:
            raise ValueError(
                f"{self._num_dropped} of {self._num_groups} groups were lost to failures of the environment, more than "
                f"data.max_dropped_share ({self.max_dropped_share}) allows. The same command goes on from the last "
                f"checkpoint. The last failure: {self._last_failure}"
            )
