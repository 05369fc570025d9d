"""Evaluation by playing, which the policy stages share."""

from __future__ import annotations

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.evaluation import (
    EpisodeResult,
    Result,
    as_metrics,
    success_metrics,
    summarise_by_kind,
    summarise_episodes,
)
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Group, RolloutBatch


class PlayingModule(PolicyModule):
    """A policy that is evaluated by the games that it solves, and by what it still foresees where ``data.play.probe`` asks.

    After a validation or test ``results`` holds the rows of play, ``probe_results`` those of held-out predictions, and
    ``probe_floors`` what needs no model.
    """

    results: list[EpisodeResult]
    probe_results: list[Result]
    probe_floors: list[Result]

    def on_validation_epoch_start(self) -> None:
        self._played: list[EpisodeGroup] = []
        self._predicted: list[Group] = []

    def validation_step(
        self, batch: EpisodeBatch | RolloutBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, EpisodeBatch):
            self._played.extend(batch.groups)
        else:
            self._predicted.extend(batch.groups)

    def on_validation_epoch_end(self) -> None:
        self._summarise("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: EpisodeBatch | RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._summarise("test")

    def _summarise(self, prefix: str) -> None:
        self._played = self.of_all_ranks(self._played)
        if self._played:
            self.results = summarise_episodes(self._played)
            metrics = success_metrics(self.results, prefix)
            self.log_dict(metrics, sync_dist=True, batch_size=len(self._played))
        self._predicted = self.of_all_ranks(self._predicted)
        if self._predicted:
            data: RolloutDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.probe_results = summarise_by_kind(data.measure(self._predicted))
            if not hasattr(self, "probe_floors"):
                self.probe_floors = data.evaluate_floors([group.transition for group in self._predicted])
            metrics = as_metrics(self.probe_results, f"{prefix}/world_model")
            self.log_dict(metrics, sync_dist=True, batch_size=len(self._predicted))

    @property
    def validation_episodes(self) -> list[EpisodeGroup]:
        """What the last validation played."""
        return self._played

    @property
    def probe_groups(self) -> list[Group]:
        """What the last validation predicted."""
        return self._predicted
