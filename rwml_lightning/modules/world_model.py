"""Held-out evaluation that both world-model stages share."""

from __future__ import annotations

from typing import Any

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.evaluation import Measured, Result, as_metrics, summarise_by_kind
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import Group, RolloutBatch


class WorldModelModule(PolicyModule):
    """A policy that is evaluated by what it predicts on held-out transitions.

    After a validation ``measured`` holds what each transition scored, ``results`` the rows by kind of step, and ``floors``
    what needs no model.
    """

    measured: list[Measured]
    results: list[Result]
    floors: list[Result]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The batch itself: predictions are the generator's, and the loader has asked it for them."""
        return batch

    def on_validation_epoch_start(self) -> None:
        self._groups: list[Group] = []

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        self._groups.extend(batch.groups)

    def on_validation_epoch_end(self) -> None:
        self._groups = self.of_all_ranks(self._groups)
        if not self._groups:
            return
        data: RolloutDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        self.measured = data.measure(self._groups)
        self.results = summarise_by_kind(self.measured)
        if not hasattr(self, "floors"):
            self.floors = data.evaluate_floors([group.transition for group in self._groups])
        self.log_dict(as_metrics(self.results, "val"), sync_dist=True, batch_size=len(self._groups))

    @property
    def validation_groups(self) -> list[Group]:
        """What the last validation predicted."""
        return self._groups
