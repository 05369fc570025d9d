"""Held-out numbers, worked out by hand."""

from __future__ import annotations

import pytest
from rich.console import Console
from rwml_testing import LetterReward, make_transition

from rwml_lightning.evaluation import (
    Result,
    as_metrics,
    evaluate_floors,
    evaluate_groups,
    render_by_kind,
    render_results,
)
from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition


def make_prediction(next_state: str | None, similarity: float | None, member: int = 0) -> Prediction:
    score = Score(0.0, similarity, next_state is not None)
    return Prediction(Completion((1,), (0.0,), "stop", 0), "", "", next_state, score, 0.0, member)


def make_group(transition: Transition, *predictions: tuple[str | None, float | None]) -> Group:
    members = tuple(make_prediction(*p, member=m) for m, p in enumerate(predictions))
    return Group(transition, (1,), "", members)


GROUPS = [
    make_group(
        make_transition(0, kind="take", next_state="You  take it."), ("You take it.", 1.0), (None, None)
    ),
    make_group(make_transition(1, kind="look", knowable=False), ("far", 0.8), ("near", 0.81)),
    make_group(make_transition(2, kind="look"), ("You stand at door 2.", 0.9), ("other", 0.1)),
]


def test_means_by_scope_and_kind() -> None:
    rows = {row.name: row for row in evaluate_groups(GROUPS, success_similarity=0.8)}
    assert list(rows) == ["all", "knowable", "not knowable", "look", "take"]
    # similarities 1, missing, 0.8, 0.81, 0.9, 0.1; above 0.8: three; exact: two (white space aside)
    assert rows["all"] == Result("all", 6, pytest.approx(3.61 / 6), 3 / 6, 2 / 6, 5 / 6)
    assert rows["knowable"] == Result("knowable", 4, pytest.approx(2.0 / 4), 2 / 4, 2 / 4, 3 / 4)
    assert rows["not knowable"] == Result("not knowable", 2, pytest.approx(1.61 / 2), 1 / 2, 0.0, 1.0)
    assert rows["look"] == Result("look", 4, pytest.approx(2.61 / 4), 2 / 4, 1 / 4, 1.0)
    assert rows["take"] == Result("take", 2, pytest.approx(0.5), 1 / 2, 1 / 2, 1 / 2)


def test_metrics_are_flat_and_named_by_scope() -> None:
    metrics = as_metrics(evaluate_groups(GROUPS, 0.8), "val")
    assert metrics["val/accuracy"] == 0.5
    assert metrics["val/not_knowable/accuracy"] == 0.5
    assert metrics["val/take/exact"] == 0.5
    assert len(metrics) == 5 * 4


def test_floors_are_scored_by_the_same_reward() -> None:
    transitions = [make_transition(n) for n in range(4)]
    floors = {"copy": lambda t: t.observation, "truth": lambda t: t.next_state}
    copy, truth = evaluate_floors(transitions, LetterReward(tau_d=0.01), floors)
    assert (truth.name, truth.count, truth.accuracy, truth.exact) == ("truth", 4, 1.0, 1.0)
    assert truth.similarity == pytest.approx(1.0)
    assert copy.accuracy == copy.exact == 0.0
    assert 0 < copy.similarity < 1


def test_tables_show_two_digits_and_leave_gaps() -> None:
    console = Console(record=True, width=100)
    rows = evaluate_groups(GROUPS, 0.8)
    console.print(render_results("Held-out", rows))
    console.print(render_by_kind("By kind", {"before": rows[:1], "end": rows}))
    text = console.export_text()
    assert "0.60" in text
    take = next(line for line in text.splitlines()[::-1] if "take" in line)
    assert [cell.strip() for cell in take.strip("│ ").split("│")] == ["take", "2", "", "0.50"]
