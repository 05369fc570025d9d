"""Held-out results of a world model: how close, how often right, how well formed, by kind of step, beside the floors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from rwml_lightning.rewards.base import NextStateReward
from rwml_lightning.schema import Group, Score, Transition

MEASURES = {
    "similarity": "similarity",
    "accuracy": "under tau_d",
    "exact": "exact",
    "well_formed": "well-formed",
}
"""Measures of a result and what a table calls them."""
Predictor = Callable[[Transition], str]


@dataclass(frozen=True)
class Result:
    """One row of an evaluation table; shares lie in [0, 1].

    Args:
        name: ``all``, a kind of step, or the name of a floor.
        count: Predictions in the row.
        similarity: Mean cosine similarity; a prediction that is missing counts as 0.
        accuracy: Share with a distance under tau_d.
        exact: Share equal to the real next state, white space aside.
        well_formed: Share with a non-empty ``<next_state>``.
    """

    name: str
    count: int
    similarity: float
    accuracy: float
    exact: float
    well_formed: float


@dataclass(frozen=True)
class Scored:
    """One prediction beside what really happened."""

    transition: Transition
    prediction: str | None
    score: Score


def summarise(name: str, scored: Sequence[Scored], success_similarity: float) -> Result:
    """Mean of each measure over ``scored``, which must not be empty."""
    count = len(scored)
    assert count, f"no predictions in {name}"
    similarities = [item.score.similarity for item in scored]
    exact = [_normalise(item.prediction) == _normalise(item.transition.next_state) for item in scored]
    return Result(
        name=name,
        count=count,
        similarity=sum(s or 0.0 for s in similarities) / count,
        accuracy=sum(s is not None and s > success_similarity for s in similarities) / count,
        exact=sum(exact) / count,
        well_formed=sum(item.score.well_formed for item in scored) / count,
    )


def evaluate_groups(groups: Iterable[Group], success_similarity: float) -> list[Result]:
    """``all``, then whether the next state could be known from the history, then each kind of step."""
    scored = [
        Scored(group.transition, prediction.next_state, prediction.score)
        for group in groups
        for prediction in group.predictions
    ]
    rows = {"all": scored}
    for item in scored:
        rows.setdefault("knowable" if item.transition.knowable else "not knowable", []).append(item)
    for item in sorted(scored, key=lambda item: item.transition.kind):
        rows.setdefault(item.transition.kind, []).append(item)
    return [summarise(name, items, success_similarity) for name, items in rows.items()]


def evaluate_floors(
    transitions: Sequence[Transition], reward: NextStateReward, floors: Mapping[str, Predictor]
) -> list[Result]:
    """What each model-free predictor scores on the same transitions, so that wording is not taken for knowledge."""
    results = []
    for name, predict in floors.items():
        predictions = [predict(transition) for transition in transitions]
        scores = reward.score(transitions, predictions)
        rows = zip(transitions, predictions, scores, strict=True)
        scored = [Scored(t, p, score) for t, p, score in rows if score is not None]
        if scored:
            results.append(summarise(name, scored, reward.success_similarity))
    return results


def as_metrics(results: Iterable[Result], prefix: str) -> dict[str, float]:
    """Flat metrics: ``<prefix>/accuracy`` for ``all``, ``<prefix>/<kind>/accuracy`` for the rest."""
    metrics: dict[str, float] = {}
    for result in results:
        scope = prefix if result.name == "all" else f"{prefix}/{result.name.replace(' ', '_')}"
        for measure in MEASURES:
            metrics[f"{scope}/{measure}"] = getattr(result, measure)
    return metrics


def render_results(title: str, results: Sequence[Result]) -> Table:
    """A row a result, for example a kind of step or a floor; a column a measure."""
    table = _table(title, ["", "n", *MEASURES.values()])
    for result in results:
        values = [f"{getattr(result, measure):.2f}" for measure in MEASURES]
        table.add_row(
            result.name, str(result.count), *values, end_section=result.name in ("all", "not knowable")
        )
    return table


def render_by_kind(title: str, columns: Mapping[str, Sequence[Result]], measure: str = "accuracy") -> Table:
    """One measure by kind of step: a row a kind, a column an evaluation."""
    table = _table(title, ["", "n", *columns])
    by_name = {column: {result.name: result for result in results} for column, results in columns.items()}
    for name in dict.fromkeys(result.name for results in columns.values() for result in results):
        found = [results.get(name) for results in by_name.values()]
        count = next(result.count for result in found if result is not None)
        cells = ["" if result is None else f"{getattr(result, measure):.2f}" for result in found]
        table.add_row(name, str(count), *cells, end_section=name in ("all", "not knowable"))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _normalise(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())
