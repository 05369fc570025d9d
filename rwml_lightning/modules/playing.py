"""Evaluation by playing, which the policy stages share."""

from __future__ import annotations

from rwml_lightning.evaluation import EpisodeResult, success_metrics, summarise_episodes
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup


class PlayingModule(PolicyModule):
    """A policy that is evaluated by the games that it solves; after a validation or test ``results`` holds the rows."""

    results: list[EpisodeResult]

    def on_validation_epoch_start(self) -> None:
        self._played: list[EpisodeGroup] = []

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self._played.extend(batch.groups)

    def on_validation_epoch_end(self) -> None:
        self._summarise("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._summarise("test")

    def _summarise(self, prefix: str) -> None:
        self._played = self.of_all_ranks(self._played)
        if self._played:
            self.results = summarise_episodes(self._played)
            metrics = success_metrics(self.results, prefix)
            self.log_dict(metrics, sync_dist=True, batch_size=len(self._played))

    @property
    def validation_episodes(self) -> list[EpisodeGroup]:
        """What the last validation played."""
        return self._played
