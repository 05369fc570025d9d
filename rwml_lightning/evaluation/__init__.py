"""Held-out results with confidence intervals: of a world model beside model-free floors, of a policy by kind of task."""

from rwml_lightning.evaluation.bootstrap import bootstrap_intervals
from rwml_lightning.evaluation.episodes import (
    EpisodeResult,
    is_solved,
    measure_game,
    render_episodes,
    success_metrics,
    summarise_episodes,
)
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
    "EpisodeResult",
    "Measured",
    "ModelResult",
    "Predictor",
    "Result",
    "as_metrics",
    "bootstrap_intervals",
    "evaluate_floors",
    "is_solved",
    "measure",
    "measure_game",
    "measure_groups",
    "paired_difference",
    "render_by_kind",
    "render_comparison",
    "render_episodes",
    "render_results",
    "success_metrics",
    "summarise",
    "summarise_by_kind",
    "summarise_episodes",
]
