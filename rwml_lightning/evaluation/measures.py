"""Measures of the predictions for one held-out transition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from rwml_lightning.rewards.base import NextStateReward, score_checked, success_similarity
from rwml_lightning.rewards.rouge import rouge
from rwml_lightning.schema import Group, Score, Transition

Predictor = Callable[[Transition], str]
MEASURES: Mapping[str, str] = {
    "similarity": "similarity",
    "accuracy": "under\ntau_d",
    "exact": "exact",
    "rouge_l": "ROUGE-L",
    "well_formed": "well-\nformed",
    "agreement": "agree-\nment",
}
"""Measures and their names in tables; see :func:`measure` for each."""


@dataclass(frozen=True)
class Measured:
    """Measures of the K predictions for one transition.

    Args:
        transition_id: Id of the transition.
        kind: Kind of step of the transition.
        knowable: Whether the next state follows from the history.
        count: Number of predictions K.
        values: Mean over the K predictions of each of :data:`MEASURES`, in [0, 1] (similarity: [-1, 1]).
    """

    transition_id: str
    kind: str
    knowable: bool
    count: int
    values: Mapping[str, float]


def measure(
    transition: Transition,
    predictions: Sequence[str | None],
    scores: Sequence[Score],
    threshold: float,
) -> Measured:
    """Measure the predictions for one transition.

    A missing prediction counts as 0 in every measure. White space is normalised before texts are compared.

    - ``similarity``: Mean similarity in the scores.
    - ``accuracy``: Share of predictions with a similarity above ``threshold``.
    - ``exact``: Share of predictions equal to the real next state.
    - ``rouge_l``: Mean F-measure over the longest common subsequence of words.
    - ``well_formed``: Share of completions with a non-empty ``<next_state>``.
    - ``agreement``: Share of equal pairs of predictions, for K above 1.

    Args:
        transition: Transition with the real next state.
        predictions: K predicted next states, at least one.
        scores: Score of each prediction.
        threshold: Similarity above which a prediction counts as correct.
    """
    real = _normalise(transition.next_state)
    texts = [None if prediction is None else _normalise(prediction) for prediction in predictions]
    similarities = [score.similarity for score in scores]
    values = {
        "similarity": fmean(s or 0.0 for s in similarities),
        "accuracy": fmean(s is not None and s > threshold for s in similarities),
        "exact": fmean(text == real for text in texts),
        "rouge_l": fmean(0.0 if text is None else rouge(text, real) for text in texts),
        "well_formed": fmean(score.well_formed for score in scores),
    }
    if len(texts) > 1:
        values["agreement"] = fmean(a is not None and a == b for a, b in combinations(texts, 2))
    return Measured(transition.transition_id, transition.kind, transition.knowable, len(texts), values)


def measure_groups(groups: Iterable[Group], reward: NextStateReward) -> list[Measured]:
    """Measure groups with the scores of their predictions, which ``reward`` computed."""
    return [
        measure(
            group.transition,
            [prediction.next_state for prediction in group.predictions],
            [prediction.score for prediction in group.predictions],
            success_similarity(reward, group.transition),
        )
        for group in groups
    ]


def measure_floors(
    transitions: Sequence[Transition], reward: NextStateReward, floors: Mapping[str, Predictor]
) -> list[dict[str, Measured]]:
    """Measure model-free predictors (floors) on each transition, to show the score of mere wording without knowledge.

    Returns:
        For each transition, its measures by name of the floor, without predictions that have no score.
    """
    rows: list[dict[str, Measured]] = [{} for _ in transitions]
    for name, predict in floors.items():
        texts = [predict(transition) for transition in transitions]
        scores = score_checked(reward, transitions, texts)
        for row, transition, text, score in zip(rows, transitions, texts, scores, strict=True):
            if score is not None:
                row[name] = measure(transition, [text], [score], success_similarity(reward, transition))
    return rows


def _normalise(text: str) -> str:
    return " ".join(text.split())
