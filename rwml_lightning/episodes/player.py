"""Policy rollouts: they turn games into groups of complete episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.episodes.actors import ModelActor
from rwml_lightning.episodes.games import Game, episode_name
from rwml_lightning.episodes.loop import Played, Start, play
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import ActionSample, EpisodeBatch, EpisodeGroup, Playthrough, Sampling
from rwml_lightning.seeds import derive_seed


@dataclass
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
    """

    pool: EnvironmentPool
    policy: PolicyClient
    prompt: ActionPrompt
    seed: int
    success_reward: float = 1.0
    invalid_penalty: float = 0.0

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
        """
        version = self.policy.generator.policy_version
        starts: list[Start] = []
        positions: dict[str, tuple[int | str, ...]] = {}
        for game in games:
            for member in range(group_size):
                name = f"{stage}-{step}-{game.seed % 16**6:06x}-{episode_name(game.task, member)}"
                starts.append(Start(name, game.task, game.seed))
                positions[name] = (stage, step, game.task, game.seed, member)

        def seed_of(episode_id: str, turn: int) -> int:
            return derive_seed(self.seed, *positions[episode_id], turn)

        actor = ModelActor(self.policy, self.prompt, sampling, seed_of)
        outcome = play(self.pool, starts, actor, max_turns)
        groups, dropped = [], []
        for place, game in enumerate(games):
            members = outcome.episodes[place * group_size : (place + 1) * group_size]
            played = tuple(self._score(member) for member in members if isinstance(member, Played))
            if len(played) == group_size:
                groups.append(EpisodeGroup(game.task, game.split, played))
                continue
            member, failure = next((m, x) for m, x in enumerate(members) if isinstance(x, Failure))
            dropped.append(
                f"{game.task or game.seed}, member {member}: the environment failed twice: {failure.line}"
            )
        seconds: Mapping[str, float] = {"generate": outcome.seconds["act"], "env": outcome.seconds["env"]}
        return EpisodeBatch(step, version, tuple(groups), sampling.temperature, tuple(dropped), seconds)

    def _score(self, played: Played) -> Playthrough:
        """Convert a played episode to a playthrough with one sample and its reward per turn."""
        samples = []
        for turn, done in zip(played.turns, played.episode.turns, strict=True):
            assert turn.act.completion is not None
            reward = self.success_reward * done.reward - (0.0 if done.valid else self.invalid_penalty)
            samples.append(ActionSample(turn.act.prompt_ids, turn.act.completion, reward))
        return Playthrough(played.episode, tuple(samples), tuple(turn.transition for turn in played.turns))
