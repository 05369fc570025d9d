"""The DataModule that drives generator, reward and environments for every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning as L
from typing_extensions import override

from rwml_lightning.data.batches import Label, LabelledBatch, StepLoader, draw_played, label_transitions
from rwml_lightning.data.chat_format import ChatFormat, policy_chat
from rwml_lightning.data.collection import Collection, collect
from rwml_lightning.data.demonstrations import Demonstrations, collect_demonstrations, in_parts, read_labels
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.games import GameSource, Play
from rwml_lightning.data.generated_games import GeneratedGames
from rwml_lightning.data.play import Game
from rwml_lightning.data.prompts import WorldModelPrompt, encode_answer
from rwml_lightning.data.resumed import check_same_items
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.selection import Validation, draw, those_that_fit
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.evaluation import Measured, Result, evaluate_floors, measure_groups
from rwml_lightning.generation import Generator, WeightCheck
from rwml_lightning.generation.base import check_trainable
from rwml_lightning.models import context_tokens
from rwml_lightning.rewards import NextStateReward
from rwml_lightning.rewards.controls import Control, ControlName
from rwml_lightning.schema import Episode, EpisodeBatch, Group, RolloutBatch, Sampling, Transition

if TYPE_CHECKING:
    from rwml_lightning.modules.base import PolicyModule

Item = TypeVar("Item")


class RolloutDataModule(L.LightningDataModule):
    """Transitions and games in; on-policy rollouts, labelled batches and held-out rollouts out.

    ``prepare_data`` makes what is missing: games, then transitions. Which batches the loaders give depends on what the
    stage's module ``reads``: predictions of transitions, labels, or whole episodes.

    Args:
        transitions: Parquet file of transitions; collected into it when it is not there.
        generator: Writes completions.
        reward: Scores predictions; only the policy stage can do without.
        environment: Where transitions are collected.
        games: Games to generate for it when they are not there.
        collection: How transitions are collected.
        prompt: Template of the world-model prompt.
        sampling: Limits and temperature in training; ``top_p`` stays 1.
        prompts_per_step: Transitions a step (paper: 32).
        group_size: Predictions a transition (paper: 8 on ALFWorld, 16 on tau2-bench).
        num_passes: How often each training transition is used (paper: 2 epochs).
        num_transitions: Training transitions used, a fixed random draw; ``None`` uses all.
        validation: How held-out predictions are made.
        on_broken: A broken row of the file, or one whose prompt does not fit the context, is refused (``raise``), or
            named, counted and left out (``skip``).
        evaluator: Scores held-out predictions; ``None`` takes ``reward``. Runs with different rewards can be compared when
            they name the same evaluator.
        max_dropped_share: Stop when more than this share of groups got no verdict from the reward.
        control: A reward that knows nothing in place of the true one in training (:mod:`rwml_lightning.rewards.controls`);
            the command line's ``control``.
        play: How the policy stage plays the environment.
        demonstrations: What a policy imitates.
        chat_template_kwargs: Arguments of the tokenizer's chat template, such as ``{enable_thinking: false}``.
        seed: The run's seed; ``null`` takes ``seed_everything``.
    """

    def __init__(
        self,
        transitions: str,
        generator: Generator,
        reward: NextStateReward | None = None,
        environment: EnvironmentSpec | None = None,
        games: GeneratedGames | None = None,
        collection: Collection | None = None,
        prompt: WorldModelPrompt = WorldModelPrompt(),  # noqa: B008
        sampling: Sampling = Sampling(max_tokens=512),  # noqa: B008
        prompts_per_step: int = 32,
        group_size: int = 8,
        num_passes: int = 2,
        num_transitions: int | None = None,
        validation: Validation = Validation(),  # noqa: B008
        on_broken: Literal["raise", "skip"] = "raise",
        evaluator: NextStateReward | None = None,
        max_dropped_share: float = 0.1,
        control: ControlName = "none",
        play: Play = Play(),  # noqa: B008
        demonstrations: Demonstrations | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("prompts_per_step", prompts_per_step, 1), ("group_size", group_size, 1)):
            if value < least:
                raise ValueError(f"data.{name} is {value}; it must be at least {least}")
        if not 0 <= max_dropped_share <= 1:
            raise ValueError(f"data.max_dropped_share is {max_dropped_share}; a share lies between 0 and 1")
        check_trainable(sampling, "data.sampling")
        self.path = Path(transitions)
        self.generator = generator
        self._reward = reward
        self.environment = environment
        self.games = games
        self.collection = collection
        self.record_episodes: Callable[[int, int, list[Episode]], None] | None = None
        """Told of collected episodes; see ``record`` of :func:`rwml_lightning.data.collection.collect`."""
        self.prompt = prompt
        self.sampling = sampling
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.num_passes = num_passes
        self.num_transitions = num_transitions
        self.validation = validation
        self.on_broken: Literal["raise", "skip"] = on_broken
        self._evaluator = evaluator
        self.max_dropped_share = max_dropped_share
        self.control: ControlName = control
        self.play = play
        self.demonstrations = demonstrations
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.seed = seed
        self.train_transitions: list[Transition] = []
        self.validation_transitions: list[Transition] = []
        self._train_loader: StepLoader[Any, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._most_transitions: int | None = None
        self._only: frozenset[str] | None = None

    @property
    def module(self) -> PolicyModule:
        """The LightningModule of the current stage."""
        assert self.trainer is not None
        return self.trainer.lightning_module  # type: ignore[return-value]

    @property
    def _plays(self) -> bool:
        """Whether the current stage is one of acting; without a trainer it is one of predicting."""
        return self.trainer is not None and self.module.reads in ("episodes", "actions")

    @property
    def reward(self) -> NextStateReward:
        """Scores predictions."""
        if self._reward is None:
            raise ValueError("data.reward is missing; predictions of next states are scored by one")
        return self._reward

    @property
    def evaluator(self) -> NextStateReward:
        """Scores held-out predictions."""
        return self.reward if self._evaluator is None else self._evaluator

    @cached_property
    def chat(self) -> ChatFormat:
        """How the current stage's texts become tokens, checked for the prompts that it reads."""
        chat = self.chat_format(self.module)
        if self._plays:
            self.play.prompt.check(chat)
        if not self._plays or self.play.probe is not None:
            self.prompt.check(chat)
        return chat

    def chat_format(self, module: PolicyModule) -> ChatFormat:
        """The chat format of any policy under this config; see :func:`policy_chat`."""
        return policy_chat(module, self.generator, self.chat_template_kwargs)

    @cached_property
    def rollouts(self) -> WorldModelRollouts:
        """Makes and scores predictions to learn from, with the current stage's tokenizer."""
        control = None
        if self.control != "none":
            control = Control(self.control, self.seed, self.train_transitions)
        return self._make_rollouts(self.reward, control)

    @cached_property
    def held_out_rollouts(self) -> WorldModelRollouts:
        """Makes and scores held-out predictions, which no control touches."""
        return self._make_rollouts(self.evaluator, None)

    @cached_property
    def game_source(self) -> GameSource:
        """The games of the policy stage, and who plays them; its environments live until :meth:`close`."""
        if self.environment is None:
            raise ValueError("data.environment is not set, so the policy has nothing to act in")
        return GameSource(self.play, self.environment, self.games, self.seed, self.max_dropped_share)

    @property
    def _context(self) -> int | None:
        return self._context_with(self.module)

    def _context_with(self, module: PolicyModule) -> int | None:
        """Most tokens of a prompt and its completion, by generator and model."""
        limits = (self.generator.max_model_len, context_tokens(module.model))
        return min((limit for limit in limits if limit is not None), default=None)

    def _make_rollouts(self, reward: NextStateReward, control: Control | None) -> WorldModelRollouts:
        return WorldModelRollouts(
            self.generator, reward, self.prompt, self.chat, self.seed, self.max_dropped_share, control
        )

    @override
    def prepare_data(self) -> None:
        _ = self.chat  # a template that hides a message is found before anything is played or generated
        if self._plays:
            self.game_source.prepare()
            if self.module.reads == "actions":
                self._prepare_demonstrations()
        if not self.path.exists() and (not self._plays or self.play.probe is not None):
            self.collect(self.module)

    def check_collectable(self) -> None:
        """Raise ValueError when the config does not say how to collect the transitions that are not there."""
        if self.environment is None or self.collection is None:
            raise ValueError(
                f"data.transitions names {self.path}, which does not exist, and data.environment and data.collection do "
                "not say how to collect it"
            )

    def collect(self, module: PolicyModule) -> None:
        """Collect transitions into the file, or finish what an interrupted collection left.

        Args:
            module: The policy; its tokenizer and context are looked up only where the model plays.
        """
        self.check_collectable()
        assert self.environment is not None
        assert self.collection is not None
        collect(
            self.path, self.environment, self.games, self.collection, self.seed, self.generator,
            lambda: self.chat_format(module), lambda: self._context_with(module), self.record_episodes,
        )  # fmt: skip

    @override
    def setup(self, stage: str) -> None:
        if self._plays:
            self.game_source.set_up(stage)
            if self.play.probe is not None:
                held_out = self._hold_out(
                    read_transitions(self.path, self.on_broken), self.play.probe.num_transitions
                )
                if not held_out:
                    raise ValueError(f"{self.path} holds no validation transitions for data.play.probe")
                self.validation_transitions = held_out
            return
        if self.train_transitions:
            return
        transitions = read_transitions(self.path, self.on_broken)
        train = draw(transitions, "train", self.num_transitions, self.seed)
        if not train:
            raise ValueError(f"{self.path} holds no training transitions")
        self.train_transitions = self._that_fit(train)
        self.validation_transitions = self._hold_out(transitions, self.validation.num_transitions)

    def whole_validation_split(self) -> list[Transition]:
        """Everything that the file holds out, of which ``validation_transitions`` is a draw."""
        return self._hold_out(read_transitions(self.path, self.on_broken), None)

    def _hold_out(self, transitions: Sequence[Transition], count: int | None) -> list[Transition]:
        return self._that_fit(draw(transitions, "validation", count, self.seed))

    def _that_fit(self, transitions: Sequence[Transition]) -> list[Transition]:
        context, most = self._context, self.sampling.max_tokens
        return those_that_fit(self.path, transitions, self.prompt, self.chat, context, most, self.on_broken)

    def keep_only(self, transition_ids: Iterable[str]) -> None:
        """Train on these transitions alone; ``train_transitions`` stays whole."""
        self._only = frozenset(transition_ids)

    @override
    def train_dataloader(self) -> StepLoader[Any, Any]:
        items, batch_size, make = self._training_items()
        loader = self._train_loader = StepLoader(items, batch_size, make, self.seed, self.num_passes)
        if self._resumed is not None:
            check_same_items(loader, self._resumed, self.module.reads)
            loader.load_state_dict(self._resumed)
        return loader

    def _training_items(self) -> tuple[Sequence[Any], int, Callable[[int, Sequence[Any]], Any]]:
        """What the current stage draws from, how many of them a step, and what makes its batch."""
        if self.module.reads == "episodes":
            return self.game_source.train, self.play.games_per_step, self._play
        if self.module.reads == "actions":
            assert self.demonstrations is not None
            labels = read_labels(Path(self.demonstrations.path), self.chat)
            return in_parts(labels[: self._most_transitions], self.prompts_per_step), 1, self._imitate
        kept = [t for t in self.train_transitions if self._only is None or t.transition_id in self._only]
        make = self._rollout if self.module.on_policy else self._label
        return kept[: self._most_transitions], self.prompts_per_step, make

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else self._train_loader.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning restores a loader's own state too, but not when the loader was made before the checkpoint was read,
        # as it is to learn the number of steps for a learning rate schedule.
        self._resumed = state_dict

    @override
    def val_dataloader(self) -> list[StepLoader[Any, Any]]:
        if self._plays:
            source = self.game_source
            games = StepLoader(source.held_out, source.evaluation.batch_size, self._play_held_out, None)
            return [games] if self.play.probe is None else [games, self._predict_held_out(self.play.probe)]
        return [self._predict_held_out(self.validation)]

    def _predict_held_out(self, how: Validation) -> StepLoader[Transition, RolloutBatch]:
        sampling = Sampling(self.sampling.max_tokens, how.temperature, how.top_p)

        def predict(step: int, transitions: Sequence[Transition]) -> RolloutBatch:
            own = self._own(transitions)
            return self.held_out_rollouts.collect("validation", step, own, how.group_size, sampling)

        return StepLoader(self.validation_transitions, how.batch_size, predict, None)

    @override
    def test_dataloader(self) -> list[StepLoader[Any, Any]]:
        return self.val_dataloader()

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # token ids become tensors in the module, once packed

    def _rollout(self, step: int, transitions: Sequence[Transition]) -> RolloutBatch:
        return self.rollouts.collect(
            self.module.stage, step, self._own(transitions), self.group_size, self.sampling
        )

    def _label(self, step: int, transitions: Sequence[Transition]) -> LabelledBatch:
        return label_transitions(step, self._own(transitions), self.prompt, self.chat)

    def label_played(self, batch: EpisodeBatch, count: int) -> tuple[Label, ...]:
        """Next states as answers, for a draw of what the actions of a step's episodes did; those whose prompt is too long are
        left out."""
        played = draw_played(batch, count, self.seed)
        labels = label_transitions(batch.step, played, self.prompt, self.chat).labels
        context = self._context
        return tuple(x for x in labels if context is None or len(x.prompt_ids) + len(x.answer_ids) <= context)

    def _imitate(self, step: int, parts: Sequence[Sequence[Label]]) -> LabelledBatch:
        return LabelledBatch(step, tuple(self._own(parts[0])))

    def _prepare_demonstrations(self) -> None:
        wanted = self.demonstrations
        if wanted is None:
            raise ValueError("data.demonstrations is not set, so there is nothing to imitate")
        if Path(wanted.path).exists():
            return
        if wanted.source != "expert" and self.module.init_from is not None:
            self.module.configure_model()  # what is written should be written by the weights that will learn from it
            WeightCheck().update(self.generator, self.module, 0, self.probe_ids())
        source = self.game_source
        player = source.player(self.generator, self.chat, self._context)
        collect_demonstrations(wanted, player, source.list_training(), self.play.sampling.max_tokens)

    def _play(self, step: int, games: Sequence[Game]) -> EpisodeBatch:
        player = self.game_source.player(self.generator, self.chat, self._context)
        return self.game_source.rollout(player, self.module.stage, step, self._own(games))

    def _play_held_out(self, step: int, games: Sequence[Game]) -> EpisodeBatch:
        player = self.game_source.player(self.generator, self.chat, self._context)
        return self.game_source.rollout_held_out(player, step, self._own(games))

    def _own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of a step."""
        assert self.trainer is not None
        return items[self.trainer.global_rank :: self.trainer.world_size]

    def measure(self, groups: Sequence[Group]) -> list[Measured]:
        """Held-out predictions, measured transition by transition."""
        return measure_groups(groups, self.evaluator)

    def evaluate_floors(self, transitions: Sequence[Transition]) -> list[Result]:
        """What predictors without a model score on the same transitions."""
        return evaluate_floors(transitions, self.evaluator, floors_for(transitions, self.train_transitions))

    @contextmanager
    def as_labels(self, num_transitions: int, batch_size: int, num_passes: int) -> Iterator[None]:
        """Within it a supervised stage reads the first ``num_transitions``, ``batch_size`` a step."""
        kept = (self._most_transitions, self.prompts_per_step, self.num_passes, self.trainer)
        self._most_transitions, self.prompts_per_step, self.num_passes = (
            num_transitions,
            batch_size,
            num_passes,
        )
        try:
            yield
        finally:
            self._most_transitions, self.prompts_per_step, self.num_passes, self.trainer = kept

    def probe_ids(self) -> list[int]:
        """A fixed sequence for comparing generator and trainer: the first held-out prompt and its real answer, or words."""
        known = self.validation_transitions or self.train_transitions
        if not known:
            return list(self.chat.encode_user(self.play.prompt.system, self.play.prompt.user))
        transition = known[0]
        prompt_ids = self.prompt.encode(self.chat, transition)
        return [*encode_answer(self.chat, (), transition.next_state), *prompt_ids]

    def close(self) -> None:
        """End the generator and the environments."""
        self.generator.close()
        if "game_source" in self.__dict__:
            self.game_source.close()
