"""Held-out evaluations of a module: they turn groups of predictions or games into table rows and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rwml_lightning.evaluation.episodes import EpisodeResult, success_metrics, summarise_episodes
from rwml_lightning.evaluation.measures import Measured
from rwml_lightning.evaluation.results import Result, as_metrics, summarise, summarise_by_kind
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Group


@dataclass(frozen=True, slots=True)
class HeldOutBatch:
    """Predictions of a batch of held-out transitions, with their measures.

    Args:
        groups: Groups of predictions, one per transition.
        measured: Measures of each group.
        floors: For each group, the measures of its transition by name of the floor.
        dropped: Name of each transition without a score, and the reason.
    """

    groups: tuple[Group, ...]
    measured: tuple[Measured, ...]
    floors: tuple[Mapping[str, Measured], ...]
    dropped: tuple[str, ...] = ()


class HeldOutPredictions:
    """Collects the held-out predictions of a world model and summarises them.

    After a validation, ``groups`` holds the predictions, ``measured`` the measures of each transition, ``results`` the rows by
    kind of step, and ``floors`` the rows of the model-free predictors.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.groups: list[Group] = []
        self.measured: list[Measured] = []
        self.results: list[Result] = []
        self.floors: list[Result] = []
        self._floor_rows: list[Mapping[str, Measured]] = []

    def add(self, batch: HeldOutBatch) -> None:
        self.groups.extend(batch.groups)
        self.measured.extend(batch.measured)
        self._floor_rows.extend(batch.floors)

    def finish(self, prefix: str) -> dict[str, float]:
        if not self.groups:
            return {}
        self.results = summarise_by_kind(self.measured)
        names = dict.fromkeys(name for row in self._floor_rows for name in row)
        self.floors = [
            summarise(name, [row[name] for row in self._floor_rows if name in row]) for name in names
        ]
        return as_metrics(self.results, prefix)


class PlayedGames:
    """Collects the held-out games of a policy and summarises them.

    After a validation, ``groups`` holds the games and ``results`` the rows by kind of task.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.groups: list[EpisodeGroup] = []
        self.results: list[EpisodeResult] = []

    def add(self, batch: EpisodeBatch) -> None:
        self.groups.extend(batch.groups)

    def finish(self, prefix: str) -> dict[str, float]:
        if not self.groups:
            return {}
        self.results = summarise_episodes(self.groups)
        return success_metrics(self.results, prefix)
