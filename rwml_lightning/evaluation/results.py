"""Results of an evaluation: means over transitions with intervals, and differences between models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from rwml_lightning.evaluation.bootstrap import bootstrap_intervals
from rwml_lightning.evaluation.measures import MEASURES, Measured


@dataclass(frozen=True)
class Result:
    """One row of an evaluation table: means over transitions; see :func:`rwml_lightning.evaluation.measure`.

    ``Result(**row)`` restores a result from the JSON of ``dataclasses.asdict``.

    Args:
        name: ``all``, ``knowable``, ``not knowable``, a kind of step, or the name of a floor or model.
        count: Number of predictions in the row.
        num_transitions: Number of predicted transitions.
        similarity: Mean similarity.
        accuracy: Share of predictions with a distance under tau_d.
        exact: Share of predictions equal to the real next state.
        rouge_l: Mean ROUGE-L F-measure.
        well_formed: Share of completions with a non-empty ``<next_state>``.
        agreement: Share of equal pairs among a transition's predictions; ``None`` with one prediction per transition.
        intervals: Lower and upper bound at 95 % by measure; empty for a single transition.
    """

    name: str
    count: int
    num_transitions: int
    similarity: float
    accuracy: float
    exact: float
    rouge_l: float
    well_formed: float
    agreement: float | None = None
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelResult:
    """Evaluation of one model, as stored in its file.

    Args:
        model: Name of the model, as the user gave it.
        results: Rows by kind of step, ``all`` first.
        floors: Rows of the model-free predictors.
        measured: Measures of every transition, for paired differences.
    """

    model: str
    results: list[Result]
    floors: list[Result]
    measured: list[Measured]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ModelResult:
        """Create a result from the JSON of ``dataclasses.asdict``."""
        return cls(
            model=found["model"],
            results=[Result(**row) for row in found["results"]],
            floors=[Result(**row) for row in found["floors"]],
            measured=[Measured(**item) for item in found["measured"]],
        )


@dataclass(frozen=True)
class Difference:
    """Paired difference between two models on the transitions that both predicted.

    Args:
        num_transitions: Number of common transitions.
        values: Mean difference by measure.
        intervals: Lower and upper bound at 95 % by measure; empty for a single transition.
    """

    num_transitions: int
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]


def summarise(name: str, measured: Sequence[Measured]) -> Result:
    """Compute the mean and interval of each measure over ``measured``, which must not be empty."""
    assert measured, f"no predictions in {name}"
    measures = _common_measures(measured)
    values = _matrix(measured, measures)
    return Result(
        name=name,
        count=sum(item.count for item in measured),
        num_transitions=len(measured),
        **dict(zip(measures, values.mean(axis=0).tolist(), strict=True)),
        intervals=_intervals(measures, values),
    )


def summarise_by_kind(measured: Sequence[Measured]) -> list[Result]:
    """Summarise transitions in rows: ``all``, then ``knowable`` and ``not knowable`` next states, then each kind of step."""
    rows = {"all": list(measured)}
    for item in sorted(measured, key=lambda item: not item.knowable):
        rows.setdefault("knowable" if item.knowable else "not knowable", []).append(item)
    for item in sorted(measured, key=lambda item: item.kind):
        rows.setdefault(item.kind, []).append(item)
    return [summarise(name, items) for name, items in rows.items()]


def paired_difference(measured: Sequence[Measured], base: Sequence[Measured]) -> Difference:
    """Compute the mean difference of ``measured`` to ``base`` over their common transitions.

    Pairing removes the difficulty that a transition has for both models, so the interval is narrower than the intervals of
    the two means.

    Raises:
        ValueError: The models have no transition in common.
    """
    of_base = {item.transition_id: item for item in base}
    common = [item for item in measured if item.transition_id in of_base]
    if not common:
        raise ValueError("the two models have no transition in common")
    bases = [of_base[item.transition_id] for item in common]
    measures = _common_measures([*common, *bases])
    differences = _matrix(common, measures) - _matrix(bases, measures)
    means = dict(zip(measures, differences.mean(axis=0).tolist(), strict=True))
    return Difference(len(common), means, _intervals(measures, differences))


def as_metrics(results: Iterable[Result], prefix: str) -> dict[str, float]:
    """Return flat metrics: ``<prefix>/accuracy`` with its bounds for ``all``, ``<prefix>/<kind>/accuracy`` for other rows."""
    metrics: dict[str, float] = {}
    for result in results:
        scope = prefix if result.name == "all" else f"{prefix}/{result.name.replace(' ', '_')}"
        for name in MEASURES:
            if (value := getattr(result, name)) is not None:
                metrics[f"{scope}/{name}"] = value
        if result.name == "all" and "accuracy" in result.intervals:
            metrics[f"{scope}/accuracy_low"], metrics[f"{scope}/accuracy_high"] = result.intervals["accuracy"]
    return metrics


def _common_measures(measured: Sequence[Measured]) -> list[str]:
    """Return the measures that every transition has."""
    return [name for name in MEASURES if all(name in item.values for item in measured)]


def _matrix(
    measured: Sequence[Measured], measures: Sequence[str]
) -> Float[np.ndarray, "transitions measures"]:
    return np.array([[item.values[name] for name in measures] for item in measured])


def _intervals(
    measures: Sequence[str], values: Float[np.ndarray, "transitions measures"]
) -> dict[str, list[float]]:
    if len(values) < 2:
        return {}
    return dict(zip(measures, bootstrap_intervals(values).tolist(), strict=True))
