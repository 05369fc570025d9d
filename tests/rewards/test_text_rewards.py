"""ROUGE, equality and weighted sums, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rwml_lightning.rewards import ExactMatchReward, NextStateReward, RougeReward, WeightedReward
from rwml_lightning.rewards.base import NO_PREDICTION
from rwml_lightning.schema import Score, Transition
from support.rewards import LetterReward
from support.worlds import make_transition


def rewards_of(reward: NextStateReward, next_state: str, *predictions: str | None) -> list[float | None]:
    scores = reward.score([make_transition(next_state=next_state)] * len(predictions), predictions)
    return [None if score is None else score.reward for score in scores]


def test_rouge_is_the_f_measure_of_what_both_have() -> None:
    real = "the mug is on the shelf"  # 6 words
    # Longest common subsequence "mug on the shelf": precision 4/4, recall 4/6; single words the same; pairs 2/3 and 2/5.
    prediction = "Mug, on the shelf!"
    assert rewards_of(RougeReward("rougeL"), real, prediction, real, "", None) == pytest.approx(
        [0.8, 1, 0, 0]
    )
    assert rewards_of(RougeReward("rouge1"), real, "shelf the on mug") == pytest.approx([0.8])
    assert rewards_of(RougeReward("rougeL"), real, "shelf the on mug") == pytest.approx([0.4])  # 2/4 and 2/6
    assert rewards_of(RougeReward("rouge2"), real, prediction) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("overlap", "rounded"), [("a b", 0.6), ("a b c", 0.8), ("a b c d", 1.0), ("a", 0.4), ("x", 0)]
)
def test_rouge_is_rounded_to_steps(overlap: str, rounded: float) -> None:
    # F-measures against "a b c d": 2/3, 6/7, 1, 2/5, 0
    assert rewards_of(RougeReward(round_to=0.2), "a b c d", overlap) == pytest.approx([rounded])


def test_rouge_keeps_the_overlap_before_rounding() -> None:
    (score,) = RougeReward(round_to=0.5).score([make_transition(next_state="a b c d")], ["a b"])
    assert score == Score(0.5, pytest.approx(2 / 3), True, {"rougeL": pytest.approx(2 / 3)})


@pytest.mark.parametrize("step", [0.0, -0.2, 1.5])
def test_a_step_that_does_not_fit_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match=f"reward.round_to is {step}"):
        RougeReward(round_to=step)


def test_exact_match_leaves_only_white_space_aside() -> None:
    found = rewards_of(
        ExactMatchReward(), "You open it.", "You  open\nit. ", "You open it", "you open it.", None
    )
    assert found == [1, 0, 0, 0]


class Silent:
    """Gets no verdict on one text."""

    success_similarity = 0.5

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        return [
            None if p == "silence" else NO_PREDICTION if p is None else Score(0.5, 0.5, True)
            for p in predictions
        ]


def test_weighted_rewards_add_up_and_stay_visible() -> None:
    parts: dict[str, Any] = {"wording": RougeReward(), "exact": ExactMatchReward()}
    reward = WeightedReward(parts, {"wording": 0.5, "exact": 2.0})
    scores = reward.score([make_transition(next_state="a b c d")] * 3, ["a b c d", "a b", None])
    assert [score.reward for score in scores if score] == pytest.approx([2.5, 1 / 3, 0])
    assert scores[1] is not None
    assert scores[1].similarity == pytest.approx(2 / 3)
    assert scores[1].parts == {
        "wording": pytest.approx(2 / 3),
        "wording/rougeL": pytest.approx(2 / 3),
        "exact": 0.0,
    }
    assert scores[2] == NO_PREDICTION
    assert reward.success_similarity == 0.8


def test_a_part_without_a_verdict_leaves_the_sum_without_one() -> None:
    reward = WeightedReward({"letters": LetterReward(), "silent": Silent()}, {"letters": 1.0, "silent": 1.0})
    assert rewards_of(reward, "a", "silence", "a", None) == [None, 1.5, 0]


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ({}, {}, "reward.rewards is empty"),
        ({"exact": ExactMatchReward()}, {}, "reward.weights has no 'exact'"),
        ({"exact": ExactMatchReward()}, {"exact": 1.0, "exakt": 1.0}, "reward.rewards has no 'exakt'"),
        ({"exact": ExactMatchReward()}, {"exact": float("nan")}, "reward.weights.exact is nan"),
    ],
)
def test_rewards_and_weights_must_fit(
    rewards: dict[str, Any], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedReward(rewards, weights)
