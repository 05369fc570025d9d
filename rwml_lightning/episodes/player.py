"""Policy rollouts: they turn games into groups of complete episodes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.episodes.actors import ModelActor
from rwml_lightning.episodes.games import Game, episode_name
from rwml_lightning.episodes.loop import Outcome, Played, Start, play
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import ActionSample, EpisodeBatch, EpisodeGroup, Playthrough, Sampling
from rwml_lightning.seeds import derive_seed

log = logging.getLogger(__name__)


class EpisodePlayer:
    """Plays several games at once with the policy, each game several times. The same turn of all episodes is one batch.

    A group that loses a member permanently is dropped and counted. It does not get a reward of 0.

    Args:
        pool: Environments.
        policy: Client of the policy that writes the actions.
        prompt: Template that turns a view into a prompt.
        seed: Seed of the run. The seed of a sample depends on it and on (stage, step, game, member, turn).
        success_reward: Factor applied to the environment's reward.
        invalid_penalty: Amount subtracted from the reward of a turn if the environment does not accept its action.
        max_dropped_share: Share of lost groups above which an error is raised. A single lost group is allowed.
    """

    def __init__(
        self,
        pool: EnvironmentPool,
        policy: PolicyClient,
        prompt: ActionPrompt,
        seed: int,
        success_reward: float = 1.0,
        invalid_penalty: float = 0.0,
        max_dropped_share: float = 0.1,
    ) -> None:
        self.pool = pool
        self.policy = policy
        self.prompt = prompt
        self.seed = seed
        self.success_reward = success_reward
        self.invalid_penalty = invalid_penalty
        self.max_dropped_share = max_dropped_share
        self._num_groups = 0
        self._num_dropped = 0

    def collect(
        self,
        stage: str,
        step: int,
        games: Sequence[Game],
        group_size: int,
        sampling: Sampling,
        max_turns: int,
    ) -> EpisodeBatch:
        """Play one batch of groups, in the order of ``games``.

        Args:
            stage: Name from which seeds derive.
            step: Rollout step from which seeds derive.
            games: Games to play, one per group.
            group_size: Number of episodes per game.
            sampling: Temperature and limits of a turn.
            max_turns: Maximum number of turns per episode.

        Raises:
            ValueError: Too many groups were lost.
        """
        version = self.policy.generator.policy_version
        starts: list[Start] = []
        positions: dict[str, tuple[int | str, ...]] = {}
        for place, game in enumerate(games):
            for member in range(group_size):
                name = f"{stage}-{step}-{place}-{episode_name(game.task, member)}"
                starts.append(Start(name, game.task, game.seed))
                positions[name] = (stage, step, game.task, game.seed, member)

        def seed_of(episode_id: str, turn: int) -> int:
            return derive_seed(self.seed, *positions[episode_id], turn)

        actor = ModelActor(self.policy, self.prompt, sampling, seed_of)
        outcome = play(self.pool, starts, actor, max_turns)
        groups = []
        for place, game in enumerate(games):
            members = outcome.episodes[place * group_size : (place + 1) * group_size]
            played = tuple(self._score(member) for member in members if isinstance(member, Played))
            if len(played) == group_size:
                groups.append(EpisodeGroup(game.task, game.split, played))
        self._count(games, group_size, outcome, len(groups))
        seconds: Mapping[str, float] = {"generate": outcome.seconds["act"], "env": outcome.seconds["env"]}
        return EpisodeBatch(
            step, version, tuple(groups), sampling.temperature, len(games) - len(groups), seconds
        )

    def _score(self, played: Played) -> Playthrough:
        """Convert a played episode to a playthrough with one sample and its reward per turn."""
        samples = []
        for turn, done in zip(played.turns, played.episode.turns, strict=True):
            assert turn.act.completion is not None
            reward = self.success_reward * done.reward - (0.0 if done.valid else self.invalid_penalty)
            samples.append(ActionSample(turn.act.prompt_ids, turn.act.completion, reward))
        return Playthrough(played.episode, tuple(samples), tuple(turn.transition for turn in played.turns))

    def _count(self, games: Sequence[Game], group_size: int, outcome: Outcome, num_kept: int) -> None:
        self._num_groups += len(games)
        self._num_dropped += len(games) - num_kept
        lost = {
            place: failure for place, failure in enumerate(outcome.episodes) if isinstance(failure, Failure)
        }
        if not lost:
            return
        affected = [games[place // group_size] for place in lost]
        names = sorted({game.task or str(game.seed) for game in affected})
        log.warning("environments failed twice, so their groups are left out: %s", ", ".join(names))
        if self._num_dropped > 1 and self._num_dropped > self.max_dropped_share * self._num_groups:
            place, failure = [*lost.items()][-1]
            raise ValueError(
                f"{self._num_dropped} of {self._num_groups} groups were lost to failures of the environment, more than "
                f"data.episodes.max_dropped_share ({self.max_dropped_share}) allows. Run the same command again to continue from "
                f"the last checkpoint. The last failure: {names[-1]}, member {place % group_size}: {failure.line}"
            )
