"""The source of predictions: it turns transitions into scored predictions, labels and held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import override

from rwml_lightning.data.collection import Collection, Record, collect
from rwml_lightning.data.drops import DropLimit
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
    """Settings of next-state predictions: their transitions, prompts, sampling and reward.

    Args:
        transitions: Parquet file of transitions; it is collected if it does not exist.
        reward: Reward that scores predictions. A stage that learns from labels does not need it if ``evaluator`` is set.
        collection: Settings of the collection of transitions in ``data.environment``.
        prompt: Template of the prompt.
        sampling: Limits and temperature in training; ``top_p`` must be 1.
        prompts_per_step: Number of transitions per step (paper: 32).
        group_size: Number of predictions per transition (paper: 8 on ALFWorld, 16 on tau2-bench).
        num_passes: Number of times that each training transition is used (paper: 2 epochs).
        num_transitions: Number of training transitions, a fixed random draw; ``null`` uses all.
        validation: Settings of held-out predictions.
        evaluator: Reward that scores held-out predictions; ``null`` takes ``reward``. Runs with different rewards are comparable
            if they use the same evaluator.
        on_broken: Treatment of a broken row, or of a row with a prompt that does not fit the context: ``raise`` stops with an
            error, ``skip`` logs, counts and leaves out the row.
        max_dropped_share: Largest share of groups that may stay without a score before the run stops.
        control: Uninformative reward that replaces the true one in training (:mod:`rwml_lightning.rewards.controls`). The
            command ``control`` sets it.
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
                f"data.predictions.max_dropped_share is {self.max_dropped_share}; it must be between 0 and 1"
            )
        check_trainable(self.sampling, "data.predictions.sampling")

    @property
    def path(self) -> Path:
        """Path of the file of transitions."""
        return Path(self.transitions)

    def need_reward(self) -> NextStateReward:
        """Return the reward; raise a ValueError if it is not set."""
        if self.reward is None:
            raise ValueError(
                "data.predictions.reward is not set; predictions of next states need it for their scores"
            )
        return self.reward

    def need_evaluator(self) -> NextStateReward:
        """Return the reward that scores held-out predictions; raise a ValueError if there is none."""
        return self.need_reward() if self.evaluator is None else self.evaluator

    def check_collectable(self, environment: EnvironmentSpec | None) -> None:
        """Raise a ValueError if the config does not define how to collect missing transitions."""
        if environment is None or self.collection is None:
            raise ValueError(
                f"data.predictions.transitions names {self.path}, which does not exist; set data.environment and "
                "data.predictions.collection to collect it"
            )

    def collect(
        self,
        environment: EnvironmentSpec | None,
        seed: int,
        policy: Callable[[], PolicyClient],
        record: Record | None = None,
    ) -> None:
        """Collect transitions into the file, or finish an interrupted collection.

        Args:
            environment: ``data.environment``.
            seed: Seed of the run.
            policy: Function that returns the policy; called only if the model plays.
            record: Function called after each batch of episodes.
        """
        self.check_collectable(environment)
        assert environment is not None
        assert self.collection is not None
        collect(self.path, environment, self.collection, seed, policy, record)


class PredictionSource(Source):
    """Draws transitions, predicts their next states with the policy, and scores the predictions.

    Args:
        settings: Settings from the config.
        policy: Client of the policy that predicts.
        environment: Environment to collect missing transitions in.
        seed: Seed of the run.
        record: Function called after each collected batch of episodes.
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
        settings, transitions = self.settings, self._read()
        train = draw(transitions, "train", settings.num_transitions, self.seed)
        if stage == "fit" and not train:
            raise ValueError(f"{settings.path} holds no training transitions")
        self.train = self._fitting(train) if train else []
        self.validation = self._hold_out(transitions, settings.validation.num_transitions)

    def whole_validation_split(self) -> list[Transition]:
        """Return all held-out transitions of the file; ``validation`` is a draw from them."""
        return self._hold_out(self._read(), None)

    def _read(self) -> list[Transition]:
        return read_transitions(self.settings.path, self.settings.on_broken)

    def _hold_out(self, transitions: Sequence[Transition], count: int | None) -> list[Transition]:
        return self._fitting(draw(transitions, "validation", count, self.seed))

    def _fitting(self, transitions: Sequence[Transition]) -> list[Transition]:
        settings = self.settings
        max_tokens = settings.sampling.max_tokens
        return select_fitting(
            settings.path, transitions, settings.prompt, self.policy, max_tokens, settings.on_broken
        )

    def keep_only(self, transition_ids: Iterable[str]) -> None:
        """Train only on these transitions; ``train`` still holds all."""
        self._only = frozenset(transition_ids)

    @override
    def training(self, learns: Learns, stage: str) -> Draw[Transition, RolloutBatch | LabelledBatch]:
        settings = self.settings
        kept = [t for t in self.train if self._only is None or t.transition_id in self._only]
        if learns == "labels":
            return Draw(kept, settings.prompts_per_step, self._label, settings.num_passes)
        control = None if settings.control == "none" else Control(settings.control, self.seed, self.train)
        rollouts = self._rollouts(settings.need_reward(), control)

        def predict(step: int, transitions: Sequence[Transition]) -> RolloutBatch:
            return rollouts.collect(stage, step, transitions, settings.group_size, settings.sampling)

        return Draw(
            kept,
            settings.prompts_per_step,
            predict,
            settings.num_passes,
            complete=self._drop_limit().count,
        )

    def _label(self, step: int, transitions: Sequence[Transition]) -> LabelledBatch:
        return LabelledBatch(step, label_transitions(transitions, self.settings.prompt, self.policy.chat))

    @override
    def held_out(self) -> Draw[Transition, HeldOutBatch]:
        settings = self.settings.validation
        evaluator = self.settings.need_evaluator()
        rollouts = self._rollouts(evaluator, None)  # evaluation never uses a control
        sampling = Sampling(self.settings.sampling.max_tokens, settings.temperature, settings.top_p)

        def predict(step: int, transitions: Sequence[Transition]) -> HeldOutBatch:
            batch = rollouts.collect("validation", step, transitions, settings.group_size, sampling)
            return HeldOutBatch(
                batch.groups,
                tuple(measure_groups(batch.groups, evaluator)),
                self._measure_floors([group.transition for group in batch.groups], evaluator),
                batch.dropped,
            )

        return Draw(self.validation, settings.batch_size, predict, complete=self._drop_limit().count)

    def _drop_limit(self) -> DropLimit:
        return DropLimit("data.predictions.max_dropped_share", self.settings.max_dropped_share)

    def _measure_floors(
        self, transitions: Sequence[Transition], evaluator: NextStateReward
    ) -> tuple[dict[str, Measured], ...]:
        """Measure the floors on each transition. Training does not change them, so each is measured once."""
        new = [t for t in transitions if t.transition_id not in self._floors]
        if new:
            found = measure_floors(new, evaluator, floors_for(new, self.train))
            self._floors |= {t.transition_id: row for t, row in zip(new, found, strict=True)}
        return tuple(self._floors[t.transition_id] for t in transitions)

    def _rollouts(self, reward: NextStateReward, control: Control | None) -> WorldModelRollouts:
        return WorldModelRollouts(self.policy, reward, self.settings.prompt, self.seed, control)

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
