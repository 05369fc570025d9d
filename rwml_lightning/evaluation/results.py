"""Rows of an evaluation: means over transitions with their intervals, differences between models, model-free floors."""

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

    ``Result(**row)`` reads back what JSON made of ``dataclasses.asdict``.

    Args:
        name: ``all``, ``knowable``, ``not knowable``, a kind of step, or the name of a floor or model.
        count: Predictions in the row.
        num_transitions: Transitions that they predict.
        similarity: Mean similarity.
        accuracy: Share with a distance under tau_d.
        exact: Share equal to the real next state.
        rouge_l: Mean ROUGE-L F-measure.
        well_formed: Share with a non-empty ``<next_state>``.
        agreement: Share of equal pairs among a transition's predictions; ``None`` where each has but one.
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
    """What one model scored, as its file holds it.

    Args:
        model: As the user named it.
        results: Rows by kind of step, ``all`` first.
        floors: Rows of the model-free predictors.
        measured: Every transition, for paired differences.
    """

    model: str
    results: list[Result]
    floors: list[Result]
    measured: list[Measured]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ModelResult:
        """Read back what JSON made of ``dataclasses.asdict``."""
        return cls(
            model=found["model"],
            results=[Result(**row) for row in found["results"]],
            floors=[Result(**row) for row in found["floors"]],
            measured=[Measured(**item) for item in found["measured"]],
        )


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the transitions that both answered.

    Args:
        num_transitions: Transitions in common.
        values: Mean difference by measure.
        intervals: Lower and upper bound at 95 % by measure; empty for a single transition.
    """

    num_transitions: int
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]


def summarise(name: str, measured: Sequence[Measured]) -> Result:
    """Mean of each measure over ``measured``, which must not be empty, and its interval."""
    assert measured, f"no predictions in {name}"
    measures, values = _matrix(measured)
    return Result(
        name=name,
        count=sum(item.count for item in measured),
        num_transitions=len(measured),
        **dict(zip(measures, values.mean(axis=0).tolist(), strict=True)),
        intervals=_intervals(measures, values),
    )


def summarise_by_kind(measured: Sequence[Measured]) -> list[Result]:
    """``all``, then whether the next state could be known from the history, then each kind of step."""
    rows = {"all": list(measured)}
    for item in sorted(measured, key=lambda item: not item.knowable):
        rows.setdefault("knowable" if item.knowable else "not knowable", []).append(item)
    for item in sorted(measured, key=lambda item: item.kind):
        rows.setdefault(item.kind, []).append(item)
    return [summarise(name, items) for name, items in rows.items()]


def paired_difference(measured: Sequence[Measured], base: Sequence[Measured]) -> Difference:
    """What ``measured`` has over ``base``, transition by transition.

    Pairing takes out what makes a transition easy or hard for both, so that the interval is narrower than those of the
    two means.

    Raises:
        ValueError: They have no transition in common.
    """
    of_base = {item.transition_id: item for item in base}
    common = [item for item in measured if item.transition_id in of_base]
    if not common:
        raise ValueError("the two models answered no transition in common")
    names, values = _matrix(common)
    base_names, base_values = _matrix([of_base[item.transition_id] for item in common])
    measures = [name for name in names if name in base_names]
    differences = (
        values[:, [names.index(m) for m in measures]]
        - base_values[:, [base_names.index(m) for m in measures]]
    )
    means = dict(zip(measures, differences.mean(axis=0).tolist(), strict=True))
    return Difference(len(common), means, _intervals(measures, differences))


def as_metrics(results: Iterable[Result], prefix: str) -> dict[str, float]:
    """Flat metrics: ``<prefix>/accuracy`` for ``all``, with its bounds, ``<prefix>/<kind>/accuracy`` for the rest."""
    metrics: dict[str, float] = {}
    for result in results:
        scope = prefix if result.name == "all" else f"{prefix}/{result.name.replace(' ', '_')}"
        for name in MEASURES:
            if (value := getattr(result, name)) is not None:
                metrics[f"{scope}/{name}"] = value
        if result.name == "all" and "accuracy" in result.intervals:
            metrics[f"{scope}/accuracy_low"], metrics[f"{scope}/accuracy_high"] = result.intervals["accuracy"]
    return metrics


def _matrix(measured: Sequence[Measured]) -> tuple[list[str], Float[np.ndarray, "transitions measures"]]:
    """Measures that every transition has, and their values."""
    measures = [name for name in MEASURES if all(name in item.values for item in measured)]
    return measures, np.array([[item.values[name] for name in measures] for item in measured])


def _intervals(
    measures: Sequence[str], values: Float[np.ndarray, "transitions measures"]
) -> dict[str, list[float]]:
    if len(values) < 2:
        return {}
    return dict(zip(measures, bootstrap_intervals(values).tolist(), strict=True))
