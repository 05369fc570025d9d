"""Held-out results with confidence intervals: world models and model-free floors, and policies by kind of task."""

from rwml_lightning.evaluation.bootstrap import bootstrap_intervals
from rwml_lightning.evaluation.episodes import (
    EpisodeResult,
    measure_game,
    render_episodes,
    success_metrics,
    summarise_episodes,
)
from rwml_lightning.evaluation.held_out import HeldOutBatch, HeldOutPredictions, PlayedGames
from rwml_lightning.evaluation.measures import (
    MEASURES,
    Measured,
    Predictor,
    measure,
    measure_floors,
    measure_groups,
)
from rwml_lightning.evaluation.results import (
    ModelResult,
    Result,
    as_metrics,
    paired_difference,
    summarise,
    summarise_by_kind,
)
from rwml_lightning.evaluation.step_metrics import episode_metrics, rollout_metrics
from rwml_lightning.evaluation.tables import render_by_kind, render_comparison, render_results

__all__ = [
    "MEASURES",
    "EpisodeResult",
    "HeldOutBatch",
    "HeldOutPredictions",
    "Measured",
    "ModelResult",
    "PlayedGames",
    "Predictor",
    "Result",
    "as_metrics",
    "bootstrap_intervals",
    "episode_metrics",
    "measure",
    "measure_floors",
    "measure_game",
    "measure_groups",
    "paired_difference",
    "render_by_kind",
    "render_comparison",
    "render_episodes",
    "render_results",
    "rollout_metrics",
    "success_metrics",
    "summarise",
    "summarise_by_kind",
    "summarise_episodes",
]
