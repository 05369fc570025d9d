"""The embedding reward with a stand-in embedder, then with the packaged one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rwml_lightning.rewards import EmbeddingReward, NextStateReward
from rwml_lightning.schema import Score
from support.rewards import LetterReward
from support.worlds import make_transition


class AngleReward(EmbeddingReward):
    """Embeds a text that is a cosine so that its cosine with "1" is that number."""

    max_seq_length = None

    def _load(self) -> Any:
        return self

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([[float(t), math.sqrt(1 - float(t) ** 2)] for t in texts], dtype=np.float64)


def scores_of(reward: NextStateReward, *predictions: str | None) -> list[Score]:
    return reward.score([make_transition(next_state="1")] * len(predictions), predictions)


def test_the_threshold_is_strict() -> None:
    reward = AngleReward(tau_d=0.25)  # 0.25 and 0.75 are exact in float32
    scores = scores_of(reward, "0.75", "0.7501", "0.7499", "1", "-1")
    assert [score.reward for score in scores] == [0, 1, 0, 1, 0]
    assert scores[0].similarity == 0.75
    assert scores[1].parts["distance"] == pytest.approx(0.2499, abs=1e-6)


@pytest.mark.parametrize("tau_d", [0.1, 0.2, 0.25, 0.3, 0.4, 0.7, 1.0])
def test_reward_and_evaluation_agree_at_the_threshold(tau_d: float) -> None:
    reward = AngleReward(tau_d=tau_d)
    for cosine in (1 - tau_d, math.nextafter(1 - tau_d, 2), math.nextafter(1 - tau_d, -2)):
        assert reward.reward(cosine) == float(cosine > reward.success_similarity)
    assert reward.reward(1 - tau_d) == 0


def test_cosine_mode_pays_the_cosine() -> None:
    scores = scores_of(AngleReward(mode="cosine"), "0.5", "-0.5", None)
    assert [score.reward for score in scores] == [0.5, 0.0, 0.0]
    assert scores[1].similarity == -0.5


def test_no_prediction_earns_nothing_and_embeds_nothing() -> None:
    reward = LetterReward()
    nothing = Score(reward=0.0, similarity=None, well_formed=False)
    assert reward.score([make_transition(), make_transition(1)], [None, None]) == [nothing, nothing]
    assert reward.letters.embedded == []
    mixed = reward.score([make_transition(), make_transition(1)], [None, "You stand at door 1."])
    assert mixed[0] == nothing
    assert mixed[1].reward == 1
    assert mixed[1].well_formed
    assert reward.score([], []) == []


def test_each_text_is_embedded_once() -> None:
    reward = LetterReward()
    transitions = [make_transition(), make_transition(), make_transition(1)]
    for _ in range(3):
        reward.score(transitions, ["a", "a", "b"])
    assert sorted(reward.letters.embedded) == ["You stand at door 0.", "You stand at door 1.", "a", "b"]


def test_the_cache_is_bounded() -> None:
    reward = LetterReward(cache_size=10)
    for number in range(50):
        scores = reward.score([make_transition()], [f"text {number}"])
        assert scores[0].similarity is not None
        assert len(reward._cache) <= 10
    assert reward.letters.embedded.count("You stand at door 0.") <= 50 / 9 + 1  # what returns is kept
    texts = [f"one of many {n}" for n in range(30)]
    assert reward.embed(texts).shape == (30, 256)  # a step larger than the cache still works


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau_d": 0.0}, r"reward.tau_d is 0.0; it must be above 0 and at most 2"),
        ({"tau_d": 2.5}, r"reward.tau_d is 2.5"),
        ({"mode": "euclid"}, r"reward.mode is 'euclid'; it must be 'threshold' or 'cosine'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingReward(**arguments)


@pytest.mark.slow
def test_packaged_embedder_tells_near_from_far() -> None:
    """The order that the method rests on at tau_d 0.2: wording is near, other contents and empty words are not."""
    real = "On the shelf 1, you see a book 1, a mug 2, and a vase 1."
    reward = EmbeddingReward("package:all-minilm-l6-v2", tau_d=0.2, device="cpu")
    predictions = [
        real,
        "On the shelf 1, you see a book 1, and a mug 2.",
        "The next observation will describe the contents of the shelf.",
        "Nothing happens.",
    ]
    scores = reward.score([make_transition(next_state=real)] * 4, predictions)
    distances = [score.parts["distance"] for score in scores]
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert distances == sorted(distances)
    assert 0.0 < distances[1] < 0.15
    assert distances[2] > 0.3
    assert distances[3] > 0.8
    assert [score.reward for score in scores] == [1, 1, 0, 0]
