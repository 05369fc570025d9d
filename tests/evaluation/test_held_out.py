"""What a module gathers in a validation: rows and metrics of all ranks' batches, and nothing of the validation before."""

from __future__ import annotations

from typing import Any

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


def alone(items: list[Any]) -> list[Any]:
    return items


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
    metrics = held_out.finish(alone, "val")
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


def test_predictions_are_those_of_all_ranks() -> None:
    ranks = [HeldOutPredictions() for _ in range(2)]
    for rank, held_out in enumerate(ranks):
        held_out.add(make_batch(GROUPS[rank::2], copy=float(rank)))
    sent: list[Any] = []
    ranks[1].finish(lambda items: sent.extend(items) or items, "val")  # type: ignore[func-returns-value]
    metrics = ranks[0].finish(lambda items: [*items, *sent], "val")
    assert ranks[0].groups == [*GROUPS[::2], *GROUPS[1::2]]
    assert [one.transition_id for one in ranks[0].measured] == [
        g.transition.transition_id for g in ranks[0].groups
    ]
    assert metrics["val/similarity"] == pytest.approx(0.5)
    assert ranks[0].results[0].num_transitions == 6
    assert ranks[0].floors[0].accuracy == pytest.approx(0.5)


def test_a_rank_without_predictions_gets_those_of_the_others() -> None:
    full, empty = HeldOutPredictions(), HeldOutPredictions()
    full.add(make_batch(GROUPS[:2]))
    sent: list[Any] = []
    full.finish(lambda items: sent.extend(items) or items, "val")  # type: ignore[func-returns-value]
    assert empty.finish(lambda items: [*items, *sent], "test")["test/similarity"] == pytest.approx(0.1)
    assert empty.floors == []


def test_a_validation_forgets_the_one_before() -> None:
    held_out = HeldOutPredictions()
    held_out.add(make_batch(GROUPS, copy=0.5))
    held_out.finish(alone, "val")
    held_out.start()
    assert (held_out.groups, held_out.measured, held_out.results, held_out.floors) == ([], [], [], [])
    assert held_out.finish(alone, "val") == {}
    held_out.add(make_batch(GROUPS[:1]))
    assert held_out.finish(alone, "val")["val/similarity"] == 0.0
    assert (held_out.groups, held_out.floors) == ([GROUPS[0]], [])


def test_games_are_summarised_over_the_batches_of_all_ranks() -> None:
    games, other = PlayedGames(), PlayedGames()
    assert (games.groups, games.results) == ([], [])
    assert games.finish(alone, "val") == {}
    games.add(EpisodeBatch(0, 0, GAMES[:1]))
    games.add(EpisodeBatch(1, 0, GAMES[1:2]))
    other.add(EpisodeBatch(0, 0, GAMES[2:]))
    metrics = games.finish(lambda groups: [*groups, *other.groups], "test")
    assert games.groups == list(GAMES)
    assert games.results == summarise_episodes(GAMES)
    assert metrics == success_metrics(games.results, "test")
    assert metrics["test/success"] == pytest.approx(2 / 3)
    games.start()
    assert (games.groups, games.results) == ([], [])
    assert games.finish(alone, "test") == {}
