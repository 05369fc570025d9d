"""What a validation and a test keep and log, from prepared batches through the real trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rwml_testing import LetterReward, make_transition

from rwml_lightning.evaluation import (
    Measured,
    Result,
    as_metrics,
    success_metrics,
    summarise_by_kind,
    summarise_episodes,
)
from rwml_lightning.evaluation.measures import measure_groups
from rwml_lightning.modules import PolicyGRPO, PolicySFT, WorldModelGRPO, WorldModelSFT
from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeBatch,
    EpisodeGroup,
    Group,
    Playthrough,
    Prediction,
    RolloutBatch,
    Score,
    Transition,
    Turn,
)

REWARD = LetterReward()
FLOORS = [Result("nothing", 1, 1, 0.1, 0.0, 0.0, 0.0, 1.0)]


def make_group(number: int, similarity: float) -> Group:
    score = Score(similarity, similarity, True)
    completion = Completion((1, 2), (-1.0, -1.0), "stop", 0)
    predictions = tuple(Prediction(completion, "", "", "You stand.", score, 0.0, m) for m in range(2))
    kind = "navigation" if number % 2 else "other"
    return Group(make_transition(number, kind=kind), (1,), "", predictions)


def make_game(number: int, success: bool) -> EpisodeGroup:
    episode = Episode(f"e{number}", "test", f"g{number}", "t", 0, (Turn("A", "a"),), "end", success)
    return EpisodeGroup(
        f"g{number}",
        "validation",
        (Playthrough(episode, (ActionSample((1,), Completion((2, 3), (-1.0, -1.0), "stop", 0), 0.0),)),),
    )


GROUPS = tuple(make_group(number, number / 5) for number in range(6))
GAMES = tuple(make_game(number, number > 0) for number in range(3))


class Prepared(L.LightningDataModule):
    """Loaders of prepared batches, and an evaluator that remembers what it was asked."""

    def __init__(self, *loaders: Sequence[Any]) -> None:
        super().__init__()
        self.loaders = loaders
        self.floors_of: list[list[Transition]] = []

    def val_dataloader(self) -> Any:
        return [
            torch.utils.data.DataLoader(list(batches), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
            for batches in self.loaders
        ]

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def measure(self, groups: Sequence[Group]) -> list[Measured]:
        return measure_groups(groups, REWARD)

    def evaluate_floors(self, transitions: Sequence[Transition]) -> list[Result]:
        self.floors_of.append(list(transitions))
        return FLOORS


def make_trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def logged(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", [WorldModelGRPO, WorldModelSFT])
def test_a_world_model_is_measured_on_all_batches(tiny_model: Path, kind: type[Any]) -> None:
    module, trainer = kind(model=str(tiny_model)), make_trainer()
    data = Prepared([RolloutBatch(0, 0, GROUPS[:4]), RolloutBatch(1, 0, GROUPS[4:])])
    trainer.validate(module, data, verbose=False)
    expected = measure_groups(GROUPS, REWARD)
    assert module.validation_groups == list(GROUPS)
    assert module.measured == expected
    assert module.results == summarise_by_kind(expected)
    assert logged(trainer) == pytest.approx(as_metrics(module.results, "val"))
    assert {row.name for row in module.results} >= {"all", "navigation", "other"}
    assert (module.floors, data.floors_of) == (FLOORS, [[group.transition for group in GROUPS]])
    trainer.validate(module, data, verbose=False)
    assert len(data.floors_of) == 1  # what needs no model is computed once
    assert module.validation_groups == list(GROUPS)  # of this validation, not of both


def test_a_validation_that_lost_everything_logs_nothing(tiny_model: Path) -> None:
    trainer = make_trainer()
    data = Prepared([RolloutBatch(0, 0, ())])
    trainer.validate(WorldModelGRPO(model=str(tiny_model)), data, verbose=False)
    assert (logged(trainer), data.floors_of) == ({}, [])
    played = Prepared([EpisodeBatch(0, 0, ())], [RolloutBatch(0, 0, ())])
    trainer.validate(PolicyGRPO(model=str(tiny_model)), played, verbose=False)
    assert (logged(trainer), played.floors_of) == ({}, [])


@pytest.mark.parametrize("kind", [PolicyGRPO, PolicySFT])
@pytest.mark.parametrize("call", ["validate", "test"])
def test_a_policy_is_measured_by_games_and_by_what_it_predicts(
    tiny_model: Path, kind: type[Any], call: str
) -> None:
    module, trainer = kind(model=str(tiny_model)), make_trainer()
    data = Prepared(
        [EpisodeBatch(0, 0, GAMES[:1]), EpisodeBatch(1, 0, GAMES[1:])], [RolloutBatch(0, 0, GROUPS)]
    )
    prefix = {"validate": "val", "test": "test"}[call]
    for _ in range(2):
        getattr(trainer, call)(module, data, verbose=False)
        assert module.validation_episodes == list(GAMES)
        assert module.probe_groups == list(GROUPS)
    assert module.results == summarise_episodes(GAMES)
    assert module.results[0].values["success"] == pytest.approx(2 / 3)
    assert module.probe_results == summarise_by_kind(measure_groups(GROUPS, REWARD))
    assert (module.probe_floors, data.floors_of) == (FLOORS, [[group.transition for group in GROUPS]])
    expected = success_metrics(module.results, prefix)
    expected |= as_metrics(module.probe_results, f"{prefix}/world_model")
    assert logged(trainer) == pytest.approx(expected)


def test_every_ranks_items_are_on_every_rank(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, trainer = WorldModelGRPO(model=str(tiny_model)), make_trainer()
    module.trainer = trainer
    assert module.of_all_ranks([1, 2]) == [1, 2]
    monkeypatch.setattr(L.Trainer, "world_size", 3)

    def gather(shares: list[Any], own: list[int]) -> None:
        assert len(shares) == 3
        shares[:] = [own, [], [5]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert module.of_all_ranks([1, 2]) == [1, 2, 5]
