"""A reward that depends on the kind of next state."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rwml_lightning.evaluation import measure_groups
from rwml_lightning.rewards import NextStateReward, RewardByKind, RougeReward
from rwml_lightning.rewards.base import success_similarity
from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition
from support.rewards import LetterReward
from support.worlds import make_transition

TOOL = make_transition(transition_id="t/0", kind="tool", next_state="a b c d e")
USER = make_transition(transition_id="t/1", kind="user", next_state="Yes, please.")


class Halves:
    """0.5 for everything, and a record of what it was asked."""

    success_similarity = 0.4

    def __init__(self) -> None:
        self.asked: list[Sequence[str | None]] = []

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        self.asked.append(predictions)
        return [None if one == "refused" else Score(0.5, 0.5, True, {"half": 1.0}) for one in predictions]


def test_each_kind_is_scored_by_its_own_reward_in_one_call() -> None:
    halves = Halves()
    reward = RewardByKind({"tool": RougeReward(round_to=0.2), "user": halves})
    assert isinstance(reward, NextStateReward)
    scores = reward.score([USER, TOOL, USER, TOOL, USER], ["x", "a b c", "refused", None, "y"])
    assert halves.asked == [["x", "refused", "y"]]
    # ROUGE-L of 3 of 5 words: precision 1, recall 0.6, F 0.75, to the nearest 0.2: 0.8
    assert scores[1] is not None
    assert (scores[1].reward, scores[1].similarity) == (pytest.approx(0.8), pytest.approx(0.75))
    assert scores[1].parts == {"tool": pytest.approx(0.8), "rougeL": pytest.approx(0.75)}
    assert scores[0] == scores[4] == Score(0.5, 0.5, True, {"user": 0.5, "half": 1.0})
    assert scores[2] is None
    assert scores[3] is not None
    assert (scores[3].reward, scores[3].similarity, scores[3].well_formed) == (0.0, None, False)


def test_what_counts_as_right_depends_on_the_kind() -> None:
    reward = RewardByKind({"tool": RougeReward(success_similarity=0.8), "user": Halves()})
    assert (success_similarity(reward, TOOL), success_similarity(reward, USER)) == (0.8, 0.4)
    groups = []
    for transition in (TOOL, USER):
        score = Score(0.5, 0.5, True)
        prediction = Prediction(Completion((1,), (0.0,), "stop", 0), "", "", "x", score, 0.0, 0)
        groups.append(Group(transition, (1,), "", (prediction,)))
    assert [one.values["accuracy"] for one in measure_groups(groups, reward)] == [0.0, 1.0]


def test_what_counts_as_right_is_found_in_nested_rewards() -> None:
    inner = RewardByKind({"user": Halves(), "tool": RougeReward(success_similarity=0.9)})
    reward = RewardByKind({"user": RougeReward(success_similarity=0.8), "tool": inner})
    assert (success_similarity(reward, TOOL), success_similarity(reward, USER)) == (0.9, 0.8)
    assert reward.success_similarity == 0.8
    assert inner.success_similarity == 0.4


def test_a_kind_without_a_reward_is_named() -> None:
    reward = RewardByKind({"tool": LetterReward()})
    with pytest.raises(ValueError, match=r"has no reward for the kind 'user' of transition t/1; it has tool"):
        reward.score([TOOL, USER], ["a", "b"])
    with pytest.raises(ValueError, match=r"reward\.rewards is empty"):
        RewardByKind({})
