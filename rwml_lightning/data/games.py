"""Which games the policy stage plays, in training and in evaluations, and in which environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rwml_lightning.data.action_prompts import ActionPrompt
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.collection import is_validation, task_names
from rwml_lightning.data.generated_games import GeneratedGames, make_games
from rwml_lightning.data.play import EpisodePlayer, Game
from rwml_lightning.data.selection import Validation
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.generation import Generator
from rwml_lightning.generation.base import check_trainable
from rwml_lightning.schema import EpisodeBatch, Sampling
from rwml_lightning.seeds import derive_seed


@dataclass(frozen=True)
class PlayEvaluation:
    """How a policy is evaluated: fixed games with fixed seeds.

    Args:
        splits: Splits of the environment; ``null`` takes those that are never trained on.
        num_games: Games, a fixed random draw; ``null`` takes all.
        episodes_per_game: Episodes of each; pass@k goes up to as many.
        max_steps: Turns after which an episode is cut off (paper: 30).
        temperature: Of sampling (verl-agent: 0.4).
        batch_size: Games played at once.
        top_p: Nucleus; 1, as in training, keeps every token.
    """

    splits: list[str] | None = None
    num_games: int | None = None
    episodes_per_game: int = 1
    max_steps: int = 30
    temperature: float = 0.4
    batch_size: int = 64
    top_p: float = 1.0


@dataclass(frozen=True)
class Play:
    """How the policy stage plays; the settings of training first, then of evaluation.

    Args:
        prompt: What the policy reads.
        sampling: Limits and temperature of a turn in training; ``top_p`` stays 1.
        games_per_step: Games a step (verl-agent: 16).
        group_size: Episodes of each game (paper: 8).
        max_steps: Turns after which an episode is cut off (paper: 15 on ALFWorld).
        success_reward: What the environment's reward is multiplied with (verl-agent: 10 for a solved game).
        invalid_penalty: Taken from what a turn is paid whose action the environment did not accept (verl-agent: 0.1).
        splits: Splits of the environment that are trained on; ``null`` takes those that are not for validation.
        num_games: Games trained on, a fixed random draw; ``null`` takes all. An environment without tasks needs a number.
        validation: What ``fit`` and ``validate`` measure.
        test: What ``test`` measures; ``null`` takes all games of ``validation``'s splits.
        probe: How well the policy still foresees: predictions of held-out ``data.transitions`` beside every evaluation of play,
            scored by ``data.reward``; ``null`` makes none.
        num_workers: Processes that step environments.
        step_timeout_s: Seconds after which a step counts as hung.
    """

    prompt: ActionPrompt = ActionPrompt()  # noqa: RUF009 - frozen
    sampling: Sampling = Sampling(max_tokens=512)  # noqa: RUF009
    games_per_step: int = 16
    group_size: int = 8
    max_steps: int = 15
    success_reward: float = 10.0
    invalid_penalty: float = 0.1
    splits: list[str] | None = None
    num_games: int | None = None
    validation: PlayEvaluation = field(default_factory=PlayEvaluation)
    test: PlayEvaluation | None = None
    probe: Validation | None = None
    num_workers: int = 2
    step_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        check_trainable(self.sampling, "data.play.sampling")
        for name in ("games_per_step", "group_size", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.play.{name} is {getattr(self, name)}; it must be at least 1")


def list_games(
    spec: EnvironmentSpec,
    splits: Sequence[str] | None,
    num_games: int | None,
    seed: int,
    held_out: bool,
    key: str,
) -> list[Game]:
    """A fixed draw of games; each has one seed for its life.

    Args:
        spec: The environment.
        splits: Which of its splits; ``None`` takes those of the sort that ``held_out`` says.
        num_games: How many; ``None`` takes all.
        seed: The run's seed.
        held_out: Whether the games are for evaluation.
        key: Name of the setting, for errors.

    Raises:
        ValueError: No such split, no game in it, or an environment without tasks and no number of games.
    """
    names = task_names(spec)
    purpose = "held-out" if held_out else "train"
    if names is None:
        if num_games is None:
            raise ValueError(
                f"{key}.num_games is not set; {spec.id} has no tasks, so it must say how many seeds to play"
            )
        return [Game("", derive_seed(seed, purpose, number)) for number in range(num_games)]
    unknown = sorted(set(splits or ()) - set(names))
    if unknown:
        raise ValueError(f"{key}.splits names {unknown[0]!r}; the environment has {', '.join(sorted(names))}")
    chosen = [split for split in names if (split in splits if splits else is_validation(split) == held_out)]
    games = [Game(task, derive_seed(seed, purpose, task), split) for split in chosen for task in names[split]]
    if not games:
        raise ValueError(
            f"{spec.id} has no {purpose} games; its splits are {', '.join(sorted(names)) or 'none'}: name some in {key}.splits"
        )
    games.sort(key=lambda game: derive_seed(seed, "games", game.task))
    return games[:num_games]


class GameSource:
    """Training and held-out games, and the environments in which they are played.

    Args:
        play: Settings.
        environment: What is played.
        games: Games that are generated for it when they are not there.
        seed: The run's seed.
        max_dropped_share: See :class:`EpisodePlayer`.
    """

    def __init__(
        self,
        play: Play,
        environment: EnvironmentSpec,
        games: GeneratedGames | None,
        seed: int,
        max_dropped_share: float,
    ) -> None:
        self.play = play
        self.environment = environment if games is None else games.played_by(environment)
        self.games = games
        self.seed = seed
        self.max_dropped_share = max_dropped_share
        self.train: list[Game] = []
        self.held_out: list[Game] = []
        self.evaluation = play.validation
        self._player: EpisodePlayer | None = None

    def prepare(self) -> None:
        """Generate the games that are not there yet."""
        if self.games is not None:
            make_games(self.games, self.seed)

    def set_up(self, stage: str) -> None:
        """List the games of a stage of the trainer, of which ``test`` is evaluated in its own way."""
        if stage == "fit":
            self.train = self.list_training()
        tested = self.play.test or replace(self.play.validation, num_games=None)
        self.evaluation = tested if stage == "test" else self.play.validation
        key = "data.play.test" if stage == "test" and self.play.test else "data.play.validation"
        splits, num_games = self.evaluation.splits, self.evaluation.num_games
        self.held_out = list_games(self.environment, splits, num_games, self.seed, True, key)

    def list_training(self) -> list[Game]:
        """The games that are trained on."""
        play = self.play
        return list_games(self.environment, play.splits, play.num_games, self.seed, False, "data.play")

    def player(self, generator: Generator, chat: ChatFormat, context: int | None) -> EpisodePlayer:
        """Who plays, with one set of environments for all stages."""
        if self._player is None:
            play = self.play
            pool = EnvironmentPool(self.environment, play.num_workers, play.step_timeout_s)
            self._player = EpisodePlayer(
                pool, self.environment.id, generator, play.prompt, chat, self.seed, context,
                play.success_reward, play.invalid_penalty, max_dropped_share=self.max_dropped_share,
            )  # fmt: skip
        self._player.chat = chat
        return self._player

    def rollout(self, player: EpisodePlayer, stage: str, step: int, games: Sequence[Game]) -> EpisodeBatch:
        """Groups to learn from; a game that comes again has another seed."""
        play = self.play
        seeded = [replace(game, seed=derive_seed(game.seed, step)) for game in games]
        return player.collect(stage, step, seeded, play.group_size, play.sampling, play.max_steps)

    def rollout_held_out(self, player: EpisodePlayer, step: int, games: Sequence[Game]) -> EpisodeBatch:
        """Groups to measure."""
        how = self.evaluation
        sampling = replace(self.play.sampling, temperature=how.temperature, top_p=how.top_p)
        return player.collect("validation", step, games, how.episodes_per_game, sampling, how.max_steps)

    def close(self) -> None:
        """End the environments."""
        if self._player is not None:
            self._player.pool.close()
            self._player = None
