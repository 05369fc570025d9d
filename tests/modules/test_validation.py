"""What a validation and a test keep and log, from prepared batches through the real trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from rwml_lightning.evaluation import (
    as_metrics,
    success_metrics,
    summarise_by_kind,
    summarise_episodes,
)
from rwml_lightning.evaluation.measures import measure_groups
from rwml_lightning.modules import PolicyGRPO, PolicySFT, WorldModelGRPO, WorldModelSFT
from rwml_lightning.schema import EpisodeBatch
from support.validation import GAMES, GROUPS, REWARD, Prepared, held_out, make_trainer, summarise_floors


def logged(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", [WorldModelGRPO, WorldModelSFT])
def test_a_world_model_is_measured_on_all_batches(tiny_model: Path, kind: type[Any]) -> None:
    module, trainer = kind(model=str(tiny_model)), make_trainer()
    data = Prepared([held_out(*GROUPS[:4]), held_out(*GROUPS[4:])])
    expected = measure_groups(GROUPS, REWARD)
    for _ in range(2):  # a second validation is not added to the first
        trainer.validate(module, data, verbose=False)
        found = module.held_out
        assert found.groups == list(GROUPS)
        assert found.measured == expected
        assert found.results == summarise_by_kind(expected)
        assert found.floors == summarise_floors(GROUPS)
    assert [row.count for row in found.floors] == [12, 6]
    assert logged(trainer) == pytest.approx(as_metrics(found.results, "val"))
    assert module.evaluation_metrics == as_metrics(found.results, "val")
    assert {row.name for row in found.results} >= {"all", "navigation", "other"}


def test_a_validation_that_lost_everything_logs_nothing(tiny_model: Path) -> None:
    trainer = make_trainer()
    trainer.validate(WorldModelGRPO(model=str(tiny_model)), Prepared([held_out()]), verbose=False)
    assert logged(trainer) == {}
    module = PolicyGRPO(model=str(tiny_model))
    trainer.validate(module, Prepared([EpisodeBatch(0, 0, ())], [held_out()]), verbose=False)
    assert logged(trainer) == {}
    assert (module.held_out.floors, module.held_out.results, module.games.results) == ([], [], [])


@pytest.mark.parametrize("kind", [PolicyGRPO, PolicySFT])
@pytest.mark.parametrize("call", ["validate", "test"])
def test_a_policy_is_measured_by_games_and_by_what_it_predicts(
    tiny_model: Path, kind: type[Any], call: str
) -> None:
    module, trainer = kind(model=str(tiny_model)), make_trainer()
    data = Prepared([EpisodeBatch(0, 0, GAMES[:1]), EpisodeBatch(1, 0, GAMES[1:])], [held_out(*GROUPS)])
    prefix = {"validate": "val", "test": "test"}[call]
    for _ in range(2):
        getattr(trainer, call)(module, data, verbose=False)
        assert module.games.groups == list(GAMES)
        assert module.held_out.groups == list(GROUPS)
    assert module.games.results == summarise_episodes(GAMES)
    assert module.games.results[0].values["success"] == pytest.approx(2 / 3)
    assert module.held_out.results == summarise_by_kind(measure_groups(GROUPS, REWARD))
    assert module.held_out.floors == summarise_floors(GROUPS)
    expected = success_metrics(module.games.results, prefix)
    expected |= as_metrics(module.held_out.results, f"{prefix}/world_model")
    assert logged(trainer) == pytest.approx(expected)
