"""Groups and metrics for tests of the reward-hacking watch."""

from __future__ import annotations

from rwml_lightning.schema import Completion, Group, Prediction, Score
from support.worlds import make_transition


def make_group(number: int, *predictions: str | None) -> Group:
    made = tuple(
        Prediction(
            Completion((1,), (0.0,), "stop", 0), "", "", text, Score(1.0, 1.0, text is not None), 0.0, m
        )
        for m, text in enumerate(predictions)
    )
    return Group(make_transition(number), (1,), "", made)


GOOD = {
    "hacking/length_ratio": 1.0,
    "hacking/copied": 0.0,
    "hacking/content_free": 0.0,
    "hacking/exact": 0.5,
    "hacking/overlap": 0.9,
    "reward": 0.5,
}
