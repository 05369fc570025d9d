"""The source of episodes: it turns games into groups of played episodes and labels of solved episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from typing_extensions import override

from rwml_lightning.data.demonstrations import Demonstrations, collect_demonstrations, read_labels
from rwml_lightning.data.drops import DropLimit
from rwml_lightning.data.labels import draw_played, label_transitions
from rwml_lightning.data.loader import Draw
from rwml_lightning.data.source import Learns, Source
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.episodes.games import Game, draw_games
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.generation.base import check_trainable
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import EpisodeBatch, Label, LabelledBatch, Sampling
from rwml_lightning.seeds import derive_seed


@dataclass(frozen=True)
class GameEvaluation:
    """Settings of the evaluation of a policy on fixed games with fixed seeds.

    Args:
        splits: Splits of the environment; ``null`` takes the splits that are never trained on.
        num_games: Number of games, a fixed random draw; ``null`` takes all.
        episodes_per_game: Number of episodes of each game, which is also the largest possible k of pass@k.
        max_turns: Number of turns after which an episode is cut off (paper: 30).
        temperature: Sampling temperature (verl-agent: 0.4).
        batch_size: Number of games played at once.
        top_p: Probability mass of nucleus sampling; 1, as in training, keeps every token.
    """

    splits: list[str] | None = None
    num_games: int | None = None
    episodes_per_game: int = 1
    max_turns: int = 30
    temperature: float = 0.4
    batch_size: int = 64
    top_p: float = 1.0


@dataclass(frozen=True)
class NextStateLabels:
    """Settings of next-state labels from the turns of the same step, for ``model.world_model_weight``.

    Args:
        num_per_step: Number of labels per step, a random draw.
        prompt: Template of the next-state prompts.
    """

    num_per_step: int = 16
    prompt: WorldModelPrompt = WorldModelPrompt()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Episodes:
    """Settings of the episodes that the policy plays in training and evaluation.

    Args:
        prompt: Prompt for an action.
        sampling: Limits and temperature of a turn in training; ``top_p`` must be 1.
        games_per_step: Number of games per step (verl-agent: 16).
        group_size: Number of episodes of each game (paper: 8).
        num_passes: Number of times that each training game, or demonstration, is used.
        max_turns: Number of turns after which an episode is cut off (paper: 15 on ALFWorld).
        success_reward: Factor applied to the environment's reward (verl-agent: 10 for a solved game).
        invalid_penalty: Amount subtracted from the reward of a turn if the environment does not accept its action
            (verl-agent: 0.1).
        splits: Splits of the environment for training; ``null`` takes the splits that are not for validation.
        num_games: Number of training games, a fixed random draw; ``null`` takes all. An environment without tasks needs a number.
        demonstrations: Episodes that a supervised stage imitates.
        next_state_labels: Next-state labels from the turns of a step, for ``model.world_model_weight``.
        validation: Evaluation in ``fit`` and ``validate``.
        test: Evaluation in ``test``; ``null`` takes all games of the splits of ``validation``.
        num_workers: Number of processes that step the environments.
        step_timeout_s: Seconds after which a step counts as hung.
        max_dropped_share: Largest share of groups that may be lost to environment failures before the run stops.
    """

    prompt: ActionPrompt = ActionPrompt()  # noqa: RUF009 - frozen
    sampling: Sampling = Sampling(max_tokens=512)  # noqa: RUF009
    games_per_step: int = 16
    group_size: int = 8
    num_passes: int = 2
    max_turns: int = 15
    success_reward: float = 10.0
    invalid_penalty: float = 0.1
    splits: list[str] | None = None
    num_games: int | None = None
    demonstrations: Demonstrations | None = None
    next_state_labels: NextStateLabels | None = None
    validation: GameEvaluation = field(default_factory=GameEvaluation)
    test: GameEvaluation | None = None
    num_workers: int = 2
    step_timeout_s: float = 60.0
    max_dropped_share: float = 0.1

    def __post_init__(self) -> None:
        check_trainable(self.sampling, "data.episodes.sampling")
        for name in ("games_per_step", "group_size", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.episodes.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.max_dropped_share <= 1:
            raise ValueError(
                f"data.episodes.max_dropped_share is {self.max_dropped_share}; it must be between 0 and 1"
            )

    def need_demonstrations(self) -> Demonstrations:
        """Return the demonstrations; raise a ValueError if they are not set."""
        if self.demonstrations is None:
            raise ValueError("data.episodes.demonstrations is not set; it must name the episodes to imitate")
        return self.demonstrations


class EpisodeSource(Source):
    """Draws games and plays them with the policy. The environments run until :meth:`close`.

    Args:
        settings: Settings from the config.
        policy: Client of the policy that plays.
        environment: Environment of the games.
        seed: Seed of the run.
    """

    def __init__(
        self, settings: Episodes, policy: PolicyClient, environment: EnvironmentSpec, seed: int
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.environment = environment
        self.seed = seed
        self.train: list[Game] = []
        self.validation: list[Game] = []
        self.evaluation = settings.validation

    @property
    def policy_demonstrates(self) -> bool:
        """Whether the policy must first write the demonstrations that it learns from."""
        demonstrations = self.settings.demonstrations
        return (
            demonstrations is not None
            and demonstrations.source != "expert"
            and not Path(demonstrations.path).exists()
        )

    @override
    def check(self) -> None:
        self.settings.prompt.check(self.policy.chat)
        if self.settings.next_state_labels is not None:
            self.settings.next_state_labels.prompt.check(self.policy.chat)

    @override
    def prepare(self, learns: Learns) -> None:
        self.environment.prepare(self.seed)
        if learns == "samples":
            return
        demonstrations = self.settings.need_demonstrations()
        if not Path(demonstrations.path).exists():
            max_tokens = self.settings.sampling.max_tokens
            collect_demonstrations(demonstrations, self.player, self._draw_training(), max_tokens)

    @override
    def set_up(self, stage: str) -> None:
        settings = self.settings
        if stage == "fit":
            self.train = self._draw_training()
        tested = settings.test or replace(settings.validation, num_games=None)
        self.evaluation = tested if stage == "test" else settings.validation
        key = "data.episodes.test" if stage == "test" and settings.test else "data.episodes.validation"
        splits, num_games = self.evaluation.splits, self.evaluation.num_games
        self.validation = draw_games(self.environment, splits, num_games, self.seed, True, key)

    def _draw_training(self) -> list[Game]:
        settings = self.settings
        return draw_games(
            self.environment, settings.splits, settings.num_games, self.seed, False, "data.episodes"
        )

    @cached_property
    def player(self) -> EpisodePlayer:
        """Player of the episodes. Training and evaluation share its environments."""
        settings = self.settings
        pool = EnvironmentPool(self.environment, settings.num_workers, settings.step_timeout_s)
        return EpisodePlayer(
            pool,
            self.policy,
            settings.prompt,
            self.seed,
            settings.success_reward,
            settings.invalid_penalty,
        )

    @override
    def training(self, learns: Learns, stage: str) -> Draw[Game, EpisodeBatch] | Draw[Label, LabelledBatch]:
        settings = self.settings
        if learns == "labels":
            demonstrations = settings.need_demonstrations()
            labels = read_labels(Path(demonstrations.path), self.policy.chat)

            def imitate(step: int, labels: Sequence[Label]) -> LabelledBatch:
                return LabelledBatch(step, tuple(labels))

            return Draw(labels, demonstrations.labels_per_step, imitate, settings.num_passes, in_parts=True)

        def play(step: int, games: Sequence[Game]) -> EpisodeBatch:
            # A game has another seed in every step that uses it.
            seeded = [replace(game, seed=derive_seed(game.seed, step)) for game in games]
            return self.player.collect(
                stage, step, seeded, settings.group_size, settings.sampling, settings.max_turns
            )

        limit = self._drop_limit()

        def complete(batch: EpisodeBatch) -> EpisodeBatch:
            return replace(limit.count(batch), labels=self._label_played(batch))

        return Draw(self.train, settings.games_per_step, play, settings.num_passes, complete=complete)

    def _drop_limit(self) -> DropLimit:
        return DropLimit("data.episodes.max_dropped_share", self.settings.max_dropped_share)

    def _label_played(self, batch: EpisodeBatch) -> tuple[Label, ...]:
        """Draw transitions from the episodes and return their labels, without labels that do not fit the context."""
        settings = self.settings.next_state_labels
        if settings is None:
            return ()
        played = draw_played(batch.groups, batch.step, settings.num_per_step, self.seed)
        labels = label_transitions(played, settings.prompt, self.policy.chat)
        return tuple(x for x in labels if self.policy.fits(len(x.prompt_ids) + len(x.answer_ids)))

    @override
    def held_out(self) -> Draw[Game, EpisodeBatch]:
        settings = self.evaluation
        sampling = replace(self.settings.sampling, temperature=settings.temperature, top_p=settings.top_p)

        def play(step: int, games: Sequence[Game]) -> EpisodeBatch:
            return self.player.collect(
                "validation", step, games, settings.episodes_per_game, sampling, settings.max_turns
            )

        return Draw(self.validation, settings.batch_size, play, complete=self._drop_limit().count)

    @override
    def probe_ids(self) -> list[int]:
        prompt = self.settings.prompt
        return list(self.policy.chat.encode_user(prompt.system, prompt.user))

    @override
    def close(self) -> None:
        if "player" in self.__dict__:
            self.player.pool.close()
            del self.player
