"""Held-out numbers, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from rwml_lightning.evaluation import (
    MEASURES,
    ModelResult,
    Result,
    as_metrics,
    measure,
    measure_floors,
    measure_groups,
    paired_difference,
    render_by_kind,
    render_comparison,
    render_results,
    summarise,
    summarise_by_kind,
)
from rwml_lightning.rewards import RougeReward
from rwml_lightning.rewards.rouge import rouge
from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition
from rwml_lightning.terminal import Terminal
from support.rewards import LetterReward
from support.worlds import make_transition


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
MEASURED = measure_groups(GROUPS, RougeReward(success_similarity=0.8))


def render(*tables: Table) -> list[str]:
    console = Terminal(record=True, width=100)
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").split("│")]


def test_means_by_scope_and_kind() -> None:
    rows = {row.name: replace(row, intervals={}) for row in summarise_by_kind(MEASURED[::-1])}
    assert list(rows) == ["all", "knowable", "not knowable", "look", "take"]
    # similarities 1, missing, 0.8, 0.81, 0.9, 0.1; above 0.8: three; exact: two (white space aside)
    assert rows["all"] == Result(
        "all", 6, 3, pytest.approx(3.61 / 6), 3 / 6, 2 / 6, 2 / 6, pytest.approx(5 / 6), 0.0
    )
    assert rows["knowable"] == Result(
        "knowable", 4, 2, pytest.approx(2.0 / 4), 2 / 4, 2 / 4, 2 / 4, 3 / 4, 0.0
    )
    assert rows["not knowable"] == Result(
        "not knowable", 2, 1, pytest.approx(1.61 / 2), 1 / 2, 0.0, 0.0, 1.0, 0.0
    )
    assert rows["look"] == Result("look", 4, 2, pytest.approx(2.61 / 4), 2 / 4, 1 / 4, 1 / 4, 1.0, 0.0)
    assert rows["take"] == Result("take", 2, 1, pytest.approx(0.5), 1 / 2, 1 / 2, 1 / 2, 1 / 2, 0.0)


def test_samples_of_a_transition_stay_together() -> None:
    """A hundred equal samples of two transitions know no more than one sample of each."""
    one = [make_group(make_transition(n), ("x", float(n))) for n in range(2)]
    many = [make_group(make_transition(n), *[("x", float(n))] * 100) for n in range(2)]
    first, second = (
        summarise("all", measure_groups(groups, RougeReward(success_similarity=0.5)))
        for groups in (one, many)
    )
    assert first.accuracy == second.accuracy == 0.5
    assert first.intervals["accuracy"] == second.intervals["accuracy"] == [0.0, 1.0]
    assert (first.count, second.count, first.num_transitions, second.num_transitions) == (2, 200, 2, 2)


def test_a_single_transition_has_no_interval() -> None:
    by_name = {row.name: row for row in summarise_by_kind(MEASURED)}
    assert by_name["take"].intervals == {}
    assert set(by_name["look"].intervals) == set(MEASURES)


@pytest.mark.parametrize(
    ("texts", "agreement"),
    [
        (["a"], None),
        (["a", "a "], 1.0),
        (["a", "b"], 0.0),
        (["a", "a", "b"], 1 / 3),
        (["a", "a", "b", "b"], 2 / 6),
        ([None, None], 0.0),
        ([None, "a", "a"], 1 / 3),
    ],
)
def test_agreement_counts_equal_pairs(texts: list[str | None], agreement: float | None) -> None:
    scores = [Score(0.0, None, text is not None) for text in texts]
    found = measure(make_transition(0), texts, scores, 0.8).values.get("agreement")
    assert found == (None if agreement is None else pytest.approx(agreement))


@given(st.lists(st.sampled_from([None, "a", "b", "You stand at door 0."]), min_size=1, max_size=6))
def test_measures_are_shares(texts: list[str | None]) -> None:
    scores = LetterReward().score([make_transition(0)] * len(texts), texts)
    values = measure(make_transition(0), texts, scores, 0.9).values
    assert all(0 <= value <= 1 + 1e-6 for value in values.values())
    assert values["exact"] <= values["accuracy"] <= values["well_formed"]
    assert values["exact"] <= values["rouge_l"] <= values["well_formed"]


@pytest.mark.parametrize(
    ("prediction", "value"),
    [
        ("You open the drawer 1.", 1.0),
        ("you OPEN the drawer, 1", 1.0),
        ("the drawer 1", 2 * 1.0 * 0.6 / 1.6),  # precision 3/3, recall 3/5
        ("You close the drawer 2.", 3 / 5),
        ("Nothing happens.", 0.0),
        ("...", 0.0),
    ],
)
def test_rouge_l(prediction: str, value: float) -> None:
    assert rouge(prediction, "You open the drawer 1.") == pytest.approx(value)


def test_json_keeps_a_result() -> None:
    rows = summarise_by_kind(MEASURED)
    assert [Result(**row) for row in json.loads(json.dumps([asdict(row) for row in rows]))] == rows
    whole = ModelResult("a/b", rows, rows[:1], MEASURED)
    assert ModelResult.from_json(json.loads(json.dumps(asdict(whole)))) == whole


def test_metrics_are_flat_and_named_by_scope() -> None:
    metrics = as_metrics(summarise_by_kind(MEASURED), "val")
    assert metrics["val/accuracy"] == 0.5
    assert metrics["val/not_knowable/accuracy"] == 0.5
    assert metrics["val/take/exact"] == 0.5
    assert (metrics["val/accuracy_low"], metrics["val/accuracy_high"]) == (0.5, 0.5)
    assert len(metrics) == 5 * 6 + 2
    assert all(isinstance(value, float) for value in metrics.values())


def test_what_is_not_measured_is_no_metric() -> None:
    single = measure_groups([make_group(make_transition(0), ("x", 1.0))], RougeReward(success_similarity=0.5))
    metrics = as_metrics(summarise_by_kind(single), "val")
    assert not any(name.endswith(("agreement", "accuracy_low")) for name in metrics)


def test_a_paired_difference_is_surer_than_the_means_it_comes_from() -> None:
    """One model is right where the other is, and once more in ten: the spread between transitions cancels out."""
    base = measure_groups(
        [make_group(make_transition(n), ("x", float(n % 2))) for n in range(40)],
        RougeReward(success_similarity=0.5),
    )
    better = measure_groups(
        [make_group(make_transition(n), ("x", float(n % 2 or n % 10 == 0))) for n in reversed(range(50))],
        RougeReward(success_similarity=0.5),
    )
    found = paired_difference(better, base)
    assert found.num_transitions == 40
    assert found.values["accuracy"] == pytest.approx(4 / 40)
    low, high = found.intervals["accuracy"]
    assert 0 < low < 0.1 < high < 0.25
    of_base = summarise("all", base).intervals["accuracy"]
    assert high - low < (of_base[1] - of_base[0]) * 0.7
    assert paired_difference(base, base).intervals["accuracy"] == [0.0, 0.0]


def test_models_without_a_transition_in_common_are_not_compared() -> None:
    with pytest.raises(ValueError, match="no transition in common"):
        paired_difference(MEASURED[:1], MEASURED[1:])


def test_floors_are_scored_by_the_same_reward() -> None:
    transitions = [make_transition(n) for n in range(4)]
    floors = {"copy": lambda t: t.observation, "truth": lambda t: t.next_state}
    rows = measure_floors(transitions, LetterReward(tau_d=0.01), floors)
    assert [{name: one.transition_id for name, one in row.items()} for row in rows] == [
        {"copy": f"t{n}", "truth": f"t{n}"} for n in range(4)
    ]
    copy, truth = (summarise(name, [row[name] for row in rows]) for name in floors)
    assert (truth.name, truth.count, truth.accuracy, truth.exact) == ("truth", 4, 1.0, 1.0)
    assert (truth.rouge_l, truth.agreement) == (1.0, None)
    assert truth.similarity == pytest.approx(1.0)
    assert copy.accuracy == copy.exact == 0.0
    assert 0 < copy.similarity < 1


def test_tables_show_values_with_half_widths_and_leave_gaps() -> None:
    rows = summarise_by_kind(MEASURED)
    lines = render(
        render_results("Held-out", rows), render_by_kind("By kind", {"before": rows[:1], "end": rows})
    )
    look, take, *_, kind_take = [line for line in lines if "take" in line or "look" in line]
    assert cells_of(look) == [
        "look",
        "2",
        "0.65 ±.15",
        "0.50 ±.00",
        "0.25 ±.25",
        "0.25 ±.25",
        "1.00 ±.00",
        "0.00 ±.00",
    ]
    assert cells_of(take) == ["take", "1", "0.50", "0.50", "0.50", "0.50", "0.50", "0.00"]
    assert cells_of(kind_take) == ["take", "1", "", "0.50"]


@pytest.mark.heavy
def test_a_comparison_fits_a_hundred_columns() -> None:
    rows = [
        replace(summarise("all", MEASURED * 2000), name=name)
        for name in ("copy_observation", "nothing_happens")
    ]
    models = {"runs/quickstart/export": rows[0], "package:smollm2-135m-instruct": rows[1]}
    difference = paired_difference(measure_groups(GROUPS, RougeReward(success_similarity=0.85)), MEASURED)
    lines = render(render_comparison("Held-out", models, {"package:smollm2-135m-instruct": difference}, rows))
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    assert "0.33 ±.01" in "".join(lines)
    (against,) = [line for line in lines if "to the first" in line]
    assert cells_of(against)[:4] == ["to the first", "3", "+.00 ±.00", "-.17 ±.25"]


@pytest.mark.parametrize(
    ("shift", "shown"), [(0.25, "+.25"), (-0.25, "-.25"), (1.0, "+1.00"), (-1.0, "-1.00")]
)
def test_differences_have_a_sign(shift: float, shown: str) -> None:
    base = [replace(MEASURED[0], values={"similarity": 0.0})]
    other = [replace(MEASURED[0], values={"similarity": shift})]
    row = summarise("all", MEASURED)
    lines = render(render_comparison("", {"a": row, "b": row}, {"b": paired_difference(other, base)}, []))
    (against,) = [line for line in lines if "to the first" in line]
    assert cells_of(against)[2] == shown
