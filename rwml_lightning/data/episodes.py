"""The source of episodes: games in; groups of played episodes, and labels of solved ones, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from typing_extensions import override

from rwml_lightning.data.demonstrations import Demonstrations, collect_demonstrations, read_labels
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
    """How a policy is evaluated: fixed games with fixed seeds.

    Args:
        splits: Splits of the environment; ``null`` takes those that are never trained on.
        num_games: Number of games, a fixed random draw; ``null`` takes all.
        episodes_per_game: Episodes of each; pass@k goes up to as many.
        max_turns: Turns after which an episode is cut off (paper: 30).
        temperature: Temperature of sampling (verl-agent: 0.4).
        batch_size: Games played at once.
        top_p: Nucleus; 1, as in training, keeps every token.
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
    """Next states of a step's own turns, as labels for ``model.world_model_weight``.

    Args:
        num_per_step: Labels of a step, a random draw.
        prompt: Template of their prompts.
    """

    num_per_step: int = 16
    prompt: WorldModelPrompt = WorldModelPrompt()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Episodes:
    """Episodes that the policy plays; the settings of training first, then those of evaluation.

    Args:
        prompt: Prompt that asks for an action.
        sampling: Limits and temperature of a turn in training; ``top_p`` stays 1.
        games_per_step: Games a step (verl-agent: 16).
        group_size: Episodes of each game (paper: 8).
        num_passes: How often each training game, or demonstration, is used.
        max_turns: Turns after which an episode is cut off (paper: 15 on ALFWorld).
        success_reward: Factor of the environment's reward (verl-agent: 10 for a solved game).
        invalid_penalty: Taken from what a turn is paid whose action the environment did not accept (verl-agent: 0.1).
        splits: Splits of the environment that are trained on; ``null`` takes those that are not for validation.
        num_games: Number of training games, a fixed random draw; ``null`` takes all. An environment without tasks needs a number.
        demonstrations: Episodes that a supervised stage imitates.
        next_state_labels: Labels of a step's own turns; for ``model.world_model_weight``.
        validation: What ``fit`` and ``validate`` measure.
        test: What ``test`` measures; ``null`` takes all games of ``validation``'s splits.
        num_workers: Processes that step environments.
        step_timeout_s: Seconds after which a step counts as hung.
        max_dropped_share: Stop when more than this share of groups is lost to failures of the environment.
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
                f"data.episodes.max_dropped_share is {self.max_dropped_share}; a share lies between 0 and 1"
            )

    def need_demonstrations(self) -> Demonstrations:
        """Give the demonstrations, or raise a ValueError where there are none."""
        if self.demonstrations is None:
            raise ValueError("data.episodes.demonstrations is not set, so there is nothing to imitate")
        return self.demonstrations


class EpisodeSource(Source):
    """Draws games and lets the policy play them; its environments live until :meth:`close`.

    Args:
        settings: Settings of the config.
        policy: Plays.
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
        """Whether the policy has demonstrations to write before it learns from them."""
        wanted = self.settings.demonstrations
        return wanted is not None and wanted.source != "expert" and not Path(wanted.path).exists()

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
        wanted = self.settings.need_demonstrations()
        if not Path(wanted.path).exists():
            most = self.settings.sampling.max_tokens
            collect_demonstrations(wanted, self.player, self._draw_training(), most)

    @override
    def set_up(self, stage: str) -> None:
        how = self.settings
        if stage == "fit":
            self.train = self._draw_training()
        tested = how.test or replace(how.validation, num_games=None)
        self.evaluation = tested if stage == "test" else how.validation
        key = "data.episodes.test" if stage == "test" and how.test else "data.episodes.validation"
        splits, num_games = self.evaluation.splits, self.evaluation.num_games
        self.validation = draw_games(self.environment, splits, num_games, self.seed, True, key)

    def _draw_training(self) -> list[Game]:
        how = self.settings
        return draw_games(self.environment, how.splits, how.num_games, self.seed, False, "data.episodes")

    @cached_property
    def player(self) -> EpisodePlayer:
        """Plays; its environments serve training and evaluation alike."""
        how = self.settings
        pool = EnvironmentPool(self.environment, how.num_workers, how.step_timeout_s)
        return EpisodePlayer(
            pool,
            self.policy,
            how.prompt,
            self.seed,
            how.success_reward,
            how.invalid_penalty,
            how.max_dropped_share,
        )

    @override
    def training(self, learns: Learns, stage: str) -> Draw[Game, EpisodeBatch] | Draw[Label, LabelledBatch]:
        how = self.settings
        if learns == "labels":
            wanted = how.need_demonstrations()
            labels = read_labels(Path(wanted.path), self.policy.chat)

            def imitate(step: int, labels: Sequence[Label]) -> LabelledBatch:
                return LabelledBatch(step, tuple(labels))

            return Draw(labels, wanted.labels_per_step, imitate, how.num_passes, in_parts=True)

        def play(step: int, games: Sequence[Game]) -> EpisodeBatch:
            # A game that comes again has another seed.
            seeded = [replace(game, seed=derive_seed(game.seed, step)) for game in games]
            batch = self.player.collect(stage, step, seeded, how.group_size, how.sampling, how.max_turns)
            return replace(batch, labels=self._label_played(batch))

        return Draw(self.train, how.games_per_step, play, how.num_passes)

    def _label_played(self, batch: EpisodeBatch) -> tuple[Label, ...]:
        """Labels of a draw of what the episodes' actions did, without those that do not fit the context."""
        how = self.settings.next_state_labels
        if how is None:
            return ()
        played = draw_played(batch.groups, batch.step, how.num_per_step, self.seed)
        labels = label_transitions(played, how.prompt, self.policy.chat)
        return tuple(x for x in labels if self.policy.fits(len(x.prompt_ids) + len(x.answer_ids)))

    @override
    def held_out(self) -> Draw[Game, EpisodeBatch]:
        how = self.evaluation
        sampling = replace(self.settings.sampling, temperature=how.temperature, top_p=how.top_p)

        def play(step: int, games: Sequence[Game]) -> EpisodeBatch:
            return self.player.collect(
                "validation", step, games, how.episodes_per_game, sampling, how.max_turns
            )

        return Draw(self.validation, how.batch_size, play)

    @override
    def probe_ids(self) -> list[int]:
        prompt = self.settings.prompt
        return list(self.policy.chat.encode_user(prompt.system, prompt.user))

    @override
    def close(self) -> None:
        if "player" in self.__dict__:
            self.player.pool.close()
            del self.player
