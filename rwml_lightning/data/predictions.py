"""The source of predictions: transitions in; scored predictions, labels and held-out batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import override

from rwml_lightning.data.collection import Collection, Record, collect
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.labels import label_transitions
from rwml_lightning.data.loader import Draw
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.selection import Validation, draw, select_fitting
from rwml_lightning.data.source import Learns, Source
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.evaluation import HeldOutBatch, Measured, measure_floors, measure_groups
from rwml_lightning.generation.base import check_trainable
from rwml_lightning.prompts.next_state import WorldModelPrompt, encode_answer
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards import NextStateReward
from rwml_lightning.rewards.controls import Control, ControlName
from rwml_lightning.schema import LabelledBatch, RolloutBatch, Sampling, Transition


@dataclass(frozen=True)
class Predictions:
    """Predictions of next states: what is predicted, how, and what they are worth.

    Args:
        transitions: Parquet file of transitions; collected into it when it is not there.
        reward: Reward that scores predictions; a stage that learns from labels can do without where there is an ``evaluator``.
        collection: How transitions are collected in ``data.environment``.
        prompt: Template of the prompt.
        sampling: Limits and temperature in training; ``top_p`` stays 1.
        prompts_per_step: Transitions a step (paper: 32).
        group_size: Predictions a transition (paper: 8 on ALFWorld, 16 on tau2-bench).
        num_passes: How often each training transition is used (paper: 2 epochs).
        num_transitions: Number of training transitions, a fixed random draw; ``null`` uses all.
        validation: How held-out predictions are made.
        evaluator: Reward that scores held-out predictions; ``null`` takes ``reward``. Runs with different rewards can be compared
            when they name the same evaluator.
        on_broken: A broken row of the file, or one whose prompt does not fit the context, is refused (``raise``), or
            named, counted and left out (``skip``).
        max_dropped_share: Stop when more than this share of groups got no verdict from the reward.
        control: Reward that knows nothing, in place of the true one in training (:mod:`rwml_lightning.rewards.controls`);
            the command line's ``control`` sets it.
    """

    transitions: str
    reward: NextStateReward | None = None
    collection: Collection | None = None
    prompt: WorldModelPrompt = WorldModelPrompt()  # noqa: RUF009 - frozen
    sampling: Sampling = Sampling(max_tokens=512)  # noqa: RUF009
    prompts_per_step: int = 32
    group_size: int = 8
    num_passes: int = 2
    num_transitions: int | None = None
    validation: Validation = Validation()  # noqa: RUF009
    evaluator: NextStateReward | None = None
    on_broken: Literal["raise", "skip"] = "raise"
    max_dropped_share: float = 0.1
    control: ControlName = "none"

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.predictions.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.max_dropped_share <= 1:
            raise ValueError(
                f"data.predictions.max_dropped_share is {self.max_dropped_share}; a share lies between 0 and 1"
            )
        check_trainable(self.sampling, "data.predictions.sampling")

    @property
    def path(self) -> Path:
        """The file of transitions."""
        return Path(self.transitions)

    def need_reward(self) -> NextStateReward:
        """Give the reward, or raise a ValueError where there is none."""
        if self.reward is None:
            raise ValueError(
                "data.predictions.reward is missing; predictions of next states are scored by one"
            )
        return self.reward

    def need_evaluator(self) -> NextStateReward:
        """Give what scores held-out predictions, or raise a ValueError where there is nothing."""
        return self.need_reward() if self.evaluator is None else self.evaluator

    def check_collectable(self, environment: EnvironmentSpec | None) -> None:
        """Raise a ValueError where the config does not say how to collect transitions that are not there."""
        if environment is None or self.collection is None:
            raise ValueError(
                f"data.predictions.transitions names {self.path}, which does not exist, and data.environment and "
                "data.predictions.collection do not say how to collect it"
            )

    def collect(
        self,
        environment: EnvironmentSpec | None,
        seed: int,
        policy: Callable[[], PolicyClient],
        record: Record | None = None,
    ) -> None:
        """Collect transitions into the file, or finish what an interrupted collection left.

        Args:
            environment: ``data.environment``.
            seed: Seed of the run.
            policy: Gives the policy; called where the model plays.
            record: Called after each batch of episodes.
        """
        self.check_collectable(environment)
        assert environment is not None
        assert self.collection is not None
        collect(self.path, environment, self.collection, seed, policy, record)


class PredictionSource(Source):
    """Draws transitions, has the policy predict them, and scores the predictions.

    Args:
        settings: Settings of the config.
        policy: Makes the predictions.
        environment: Environment that transitions are collected in when they are not there.
        seed: Seed of the run.
        record: Called with collected episodes.
    """

    def __init__(
        self,
        settings: Predictions,
        policy: PolicyClient,
        environment: EnvironmentSpec | None,
        seed: int,
        record: Record | None = None,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.environment = environment
        self.seed = seed
        self.record = record
        self.train: list[Transition] = []
        self.validation: list[Transition] = []
        self._only: frozenset[str] | None = None
        self._floors: dict[str, dict[str, Measured]] = {}

    @override
    def check(self) -> None:
        self.settings.prompt.check(self.policy.chat)

    @override
    def prepare(self, learns: Learns) -> None:
        if not self.settings.path.exists():
            self.settings.collect(self.environment, self.seed, lambda: self.policy, self.record)

    @override
    def set_up(self, stage: str) -> None:
        if self.train:
            return
        how, transitions = self.settings, self._read()
        train = draw(transitions, "train", how.num_transitions, self.seed)
        if stage == "fit" and not train:
            raise ValueError(f"{how.path} holds no training transitions")
        self.train = self._fitting(train) if train else []
        self.validation = self._hold_out(transitions, how.validation.num_transitions)

    def whole_validation_split(self) -> list[Transition]:
        """Everything that the file holds out, of which ``validation`` is a draw."""
        return self._hold_out(self._read(), None)

    def _read(self) -> list[Transition]:
        return read_transitions(self.settings.path, self.settings.on_broken)

    def _hold_out(self, transitions: Sequence[Transition], count: int | None) -> list[Transition]:
        return self._fitting(draw(transitions, "validation", count, self.seed))

    def _fitting(self, transitions: Sequence[Transition]) -> list[Transition]:
        how = self.settings
        most = how.sampling.max_tokens
        return select_fitting(how.path, transitions, how.prompt, self.policy, most, how.on_broken)

    def keep_only(self, transition_ids: Iterable[str]) -> None:
        """Train on these transitions alone; ``train`` stays whole."""
        self._only = frozenset(transition_ids)

    @override
    def training(self, learns: Learns, stage: str) -> Draw[Transition, RolloutBatch | LabelledBatch]:
        how = self.settings
        kept = [t for t in self.train if self._only is None or t.transition_id in self._only]
        if learns == "labels":
            return Draw(kept, how.prompts_per_step, self._label, how.num_passes)
        control = None if how.control == "none" else Control(how.control, self.seed, self.train)
        rollouts = self._rollouts(how.need_reward(), control)

        def predict(step: int, transitions: Sequence[Transition]) -> RolloutBatch:
            return rollouts.collect(stage, step, transitions, how.group_size, how.sampling)

        return Draw(kept, how.prompts_per_step, predict, how.num_passes)

    def _label(self, step: int, transitions: Sequence[Transition]) -> LabelledBatch:
        return LabelledBatch(step, label_transitions(transitions, self.settings.prompt, self.policy.chat))

    @override
    def held_out(self) -> Draw[Transition, HeldOutBatch]:
        how = self.settings.validation
        evaluator = self.settings.need_evaluator()
        rollouts = self._rollouts(evaluator, None)  # no control touches it
        sampling = Sampling(self.settings.sampling.max_tokens, how.temperature, how.top_p)

        def predict(step: int, transitions: Sequence[Transition]) -> HeldOutBatch:
            batch = rollouts.collect("validation", step, transitions, how.group_size, sampling)
            return HeldOutBatch(
                batch.groups,
                tuple(measure_groups(batch.groups, evaluator)),
                self._measure_floors([group.transition for group in batch.groups], evaluator),
            )

        return Draw(self.validation, how.batch_size, predict)

    def _measure_floors(
        self, transitions: Sequence[Transition], evaluator: NextStateReward
    ) -> tuple[dict[str, Measured], ...]:
        """What predictors without a model score on each transition; computed once, for no training changes it."""
        new = [t for t in transitions if t.transition_id not in self._floors]
        if new:
            found = measure_floors(new, evaluator, floors_for(new, self.train))
            self._floors |= {t.transition_id: row for t, row in zip(new, found, strict=True)}
        return tuple(self._floors[t.transition_id] for t in transitions)

    def _rollouts(self, reward: NextStateReward, control: Control | None) -> WorldModelRollouts:
        how = self.settings
        return WorldModelRollouts(self.policy, reward, how.prompt, self.seed, how.max_dropped_share, control)

    @override
    def probe_ids(self) -> list[int]:
        known = self.validation or self.train
        if not known:
            return []
        prompt_ids = self.settings.prompt.encode(self.policy.chat, known[0])
        return [*encode_answer(self.policy.chat, (), known[0].next_state), *prompt_ids]

    @override
    def close(self) -> None:
        pass
