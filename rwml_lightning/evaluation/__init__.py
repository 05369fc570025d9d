"""Held-out results of a world model, by kind of step, with confidence intervals and beside model-free floors."""

from rwml_lightning.evaluation.bootstrap import bootstrap_intervals
from rwml_lightning.evaluation.measures import MEASURES, Measured, measure, measure_groups
from rwml_lightning.evaluation.results import (
    Difference,
    ModelResult,
    Predictor,
    Result,
    as_metrics,
    evaluate_floors,
    paired_difference,
    summarise,
    summarise_by_kind,
)
from rwml_lightning.evaluation.tables import render_by_kind, render_comparison, render_results

__all__ = [
    "MEASURES",
    "Difference",
    "Measured",
    "ModelResult",
    "Predictor",
    "Result",
    "as_metrics",
    "bootstrap_intervals",
    "evaluate_floors",
    "measure",
    "measure_groups",
    "paired_difference",
    "render_by_kind",
    "render_comparison",
    "render_results",
    "summarise",
    "summarise_by_kind",
]
