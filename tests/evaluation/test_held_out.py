"""What a module gathers in a validation: rows and metrics of all ranks' batches, and nothing of the validation before."""

from __future__ import annotations

import pytest

from rwml_lightning.evaluation import (
    HeldOutBatch,
    HeldOutPredictions,
    Measured,
    PlayedGames,
    as_metrics,
    measure_groups,
    success_metrics,
    summarise,
    summarise_by_kind,
    summarise_episodes,
)
from rwml_lightning.schema import EpisodeBatch, Group
from support.validation import GAMES, GROUPS, REWARD


def floor(group: Group, value: float) -> Measured:
    values = dict.fromkeys(("similarity", "accuracy", "exact", "rouge_l", "well_formed"), value)
    return Measured(group.transition.transition_id, "other", True, 1, values)


def make_batch(groups: tuple[Group, ...], **floors: float) -> HeldOutBatch:
    rows = tuple({name: floor(group, value) for name, value in floors.items()} for group in groups)
    return HeldOutBatch(groups, tuple(measure_groups(groups, REWARD)), rows)


def test_predictions_are_summarised_over_all_batches() -> None:
    held_out = HeldOutPredictions()
    assert (held_out.groups, held_out.measured, held_out.results, held_out.floors) == ([], [], [], [])
    held_out.add(make_batch(GROUPS[:4], copy=0.0))
    held_out.add(make_batch(GROUPS[4:], copy=0.9, truth=1.0))
    metrics = held_out.finish("val")
    measured = measure_groups(GROUPS, REWARD)
    assert (held_out.groups, held_out.measured) == (list(GROUPS), measured)
    assert held_out.results == summarise_by_kind(measured)
    assert metrics == as_metrics(held_out.results, "val")
    assert metrics["val/similarity"] == pytest.approx(0.5)  # of 0, 0.2, ..., 1
    assert metrics["val/navigation/similarity"] == pytest.approx(0.6)
    copy, truth = held_out.floors
    copied = [floor(group, 0.0 if number < 4 else 0.9) for number, group in enumerate(GROUPS)]
    assert copy == summarise("copy", copied)
    assert copy.accuracy == pytest.approx(0.3)
    assert (truth.name, truth.num_transitions, truth.accuracy) == (
        "truth",
        2,
        1.0,
    )  # the others had no verdict


def test_a_validation_forgets_the_one_before() -> None:
    held_out = HeldOutPredictions()
    held_out.add(make_batch(GROUPS, copy=0.5))
    held_out.finish("val")
    held_out.start()
    assert (held_out.groups, held_out.measured, held_out.results, held_out.floors) == ([], [], [], [])
    assert held_out.finish("val") == {}
    held_out.add(make_batch(GROUPS[:1]))
    assert held_out.finish("val")["val/similarity"] == 0.0
    assert (held_out.groups, held_out.floors) == ([GROUPS[0]], [])


def test_games_are_summarised_over_all_batches() -> None:
    games = PlayedGames()
    assert (games.groups, games.results) == ([], [])
    assert games.finish("val") == {}
    games.add(EpisodeBatch(0, 0, GAMES[:1]))
    games.add(EpisodeBatch(1, 0, GAMES[1:2]))
    games.add(EpisodeBatch(2, 0, GAMES[2:]))
    metrics = games.finish("test")
    assert games.groups == list(GAMES)
    assert games.results == summarise_episodes(GAMES)
    assert metrics == success_metrics(games.results, "test")
    assert metrics["test/success"] == pytest.approx(2 / 3)
    games.start()
    assert (games.groups, games.results) == ([], [])
    assert games.finish("test") == {}
