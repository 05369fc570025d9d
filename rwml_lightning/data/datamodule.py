"""The DataModule of every stage: it owns the generator, the environment and the seed, and turns sources into loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from typing_extensions import override

from rwml_lightning.data.collection import Record
from rwml_lightning.data.episodes import Episodes, EpisodeSource
from rwml_lightning.data.loader import StepLoader
from rwml_lightning.data.predictions import Predictions, PredictionSource
from rwml_lightning.data.resumed import check_same_items
from rwml_lightning.data.source import Source, SourceName
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.generation import Generator, WeightCheck
from rwml_lightning.prompts.policy import PolicyClient

if TYPE_CHECKING:
    from rwml_lightning.modules.base import PolicyModule


def rollout_data(trainer: L.Trainer) -> RolloutDataModule:
    """Return the DataModule of a trainer; Lightning's types do not declare this attribute."""
    return cast(Any, trainer).datamodule


class RolloutDataModule(L.LightningDataModule):
    """Makes the batches of every stage.

    A stage is trained on one source, which its module selects, and evaluated on all configured sources.

    Args:
        generator: Generator of completions.
        environment: Environment to play.
        predictions: Settings of next-state predictions.
        episodes: Settings of the episodes that the policy plays.
        chat_template_kwargs: Arguments of the tokenizer's chat template, such as ``{enable_thinking: false}``.
        seed: Seed of the run; ``null`` takes the value of ``seed_everything``.
    """

    def __init__(
        self,
        generator: Generator,
        environment: EnvironmentSpec | None = None,
        predictions: Predictions | None = None,
        episodes: Episodes | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False  # one process makes the files, on a disk that all machines share
        self.generator = generator
        self.environment = environment
        self.predictions = predictions
        self.episodes = episodes
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.seed = seed
        self.record_collection: Record | None = None
        self._limits: tuple[int, int, int] | None = None
        self._train_loader: StepLoader[Any, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    def need_predictions(self) -> Predictions:
        """Return the settings of predictions; raise a ValueError if they are not set."""
        if self.predictions is None:
            raise ValueError("data.predictions is not set; it must name the transitions to predict")
        return self.predictions

    @property
    def module(self) -> PolicyModule:
        """Module of the current stage."""
        assert self.trainer is not None
        return self.trainer.lightning_module  # type: ignore[return-value]

    def ask(self, module: PolicyModule) -> PolicyClient:
        """Return a client that generates with a module's policy."""
        return PolicyClient.of(module, self.generator, self.chat_template_kwargs)

    @cached_property
    def sources(self) -> dict[SourceName, Source]:
        """Sources that the config sets. They are built for the policy of the first stage, and all stages share them."""
        policy, found = self.ask(self.module), dict[SourceName, Source]()
        if self.predictions is not None:
            found["predictions"] = PredictionSource(
                self.predictions, policy, self.environment, self.seed, self.record_collection
            )
        if self.episodes is not None:
            if self.environment is None:
                raise ValueError("data.environment is not set, but data.episodes needs one to play")
            found["episodes"] = EpisodeSource(self.episodes, policy, self.environment, self.seed)
        return found

    @property
    def prediction_source(self) -> PredictionSource:
        """The source of predictions."""
        source = self.sources["predictions"]
        assert isinstance(source, PredictionSource)
        return source

    @override
    def prepare_data(self) -> None:
        for source in self.sources.values():
            source.check()  # reports a chat template that drops a message before anything is played or generated
        played, module = self.sources.get("episodes"), self.module
        demonstrates = isinstance(played, EpisodeSource) and played.policy_demonstrates
        if demonstrates and module.learns == "labels" and module.init_from is not None:
            module.configure_model()  # the policy that learns from the demonstrations also writes them
            WeightCheck().update(self.generator, module, 0, self.probe_ids())
        for name, source in self.sources.items():
            source.prepare(module.learns if name == module.reads else "samples")

    @override
    def setup(self, stage: str) -> None:
        for source in self.sources.values():
            source.set_up(stage)

    @override
    def train_dataloader(self) -> StepLoader[Any, Any]:
        module = self.module
        draw = self.sources[module.reads].training(module.learns, module.stage)
        if self._limits is not None:
            num_items, batch_size, num_passes = self._limits
            draw = replace(draw, items=draw.items[:num_items], batch_size=batch_size, num_passes=num_passes)
        self._train_loader = StepLoader(draw, self.seed, partial(module.may_roll_ahead, self.generator))
        self._resume()
        return self._train_loader

    def _resume(self) -> None:
        """Move the loader to the position of the checkpoint, once there are both."""
        if self._train_loader is not None and self._resumed is not None:
            check_same_items(self._train_loader, self._resumed, self.module.reads, self.module.learns)
            self._train_loader.load_state_dict(self._resumed)

    @override
    def val_dataloader(self) -> list[StepLoader[Any, Any]]:
        return [StepLoader(source.held_out()) for source in self.sources.values()]

    @override
    def test_dataloader(self) -> list[StepLoader[Any, Any]]:
        return self.val_dataloader()

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch  # the module packs the token ids and then makes tensors

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else self._train_loader.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The loader may have been made before the checkpoint is read, for the number of steps of the learning rate schedule.
        self._resumed = state_dict
        self._resume()

    @contextmanager
    def limited_to(self, num_items: int, batch_size: int, num_passes: int) -> Iterator[None]:
        """Limit training to the first ``num_items`` items, ``batch_size`` per step, for ``num_passes`` passes."""
        kept = (self._limits, self.trainer)
        self._limits = (num_items, batch_size, num_passes)
        try:
            yield
        finally:
            self._limits, self.trainer = kept
            self._train_loader = None

    def probe_ids(self) -> list[int]:
        """Return a fixed token sequence for comparing generator and trainer."""
        return next(ids for source in self.sources.values() if (ids := source.probe_ids()))

    def close(self) -> None:
        """Shut down the generator and the environments."""
        self.generator.close()
        for source in self.__dict__.get("sources", {}).values():
            source.close()
