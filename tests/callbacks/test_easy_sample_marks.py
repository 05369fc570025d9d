"""The easy-sample filter's arithmetic, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_callbacks.easy_samples.marks import (
    Marks,
    calibrate,
    check_marks,
    describe_marks,
    histogram,
    mark_easy,
    mean_rewards,
    render_histogram,
)

from rwml_lightning.schema import Score, Transition
from support.rewards import LetterReward
from support.worlds import make_transition

tenths = st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("rewards", "share", "threshold"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0.3, 0.8),
        ([1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0], 0.3, 1.0),  # 0.4 is nearer than 0
        ([1.0, 0.5, 0.5, 0.0], 0.5, 1.0),  # 0.25 and 0.75 are equally near: the smaller
        ([0.0, 0.0, 0.0, 0.1], 0.9, 0.1),  # never right is never easy
        ([0.0, 0.0], 0.3, None),
    ],
)
def test_the_threshold_meets_the_share_as_ties_allow(
    rewards: list[float], share: float, threshold: float | None
) -> None:
    assert calibrate(rewards, share) == threshold


@given(tenths, st.floats(0.01, 0.99))
def test_no_other_threshold_is_nearer(rewards: list[float], share: float) -> None:
    found = calibrate(rewards, share)
    candidates = {reward for reward in rewards if reward > 0}
    assert (found is None) == (not candidates)
    if found is not None:
        gaps = {c: abs(sum(r >= c for r in rewards) / len(rewards) - share) for c in candidates}
        assert gaps[found] == min(gaps.values())


def test_easy_ones_stay_with_the_probability_and_the_others_all() -> None:
    rewards = {f"t{i}": float(i % 2) for i in range(4000)}
    marks = mark_easy(rewards, 1.0, 0.3, 0.1, seed=0)
    assert marks.easy == {name for name, reward in rewards.items() if reward == 1.0}
    assert rewards.keys() - marks.easy <= marks.kept
    assert 150 < len(marks.easy_kept) < 250  # 200 expected, a standard deviation of 13.4
    assert marks == mark_easy(dict(reversed(rewards.items())), 1.0, 0.3, 0.1, seed=0)
    assert marks.kept != mark_easy(rewards, 1.0, 0.3, 0.1, seed=1).kept
    part = {name: rewards[name] for name in list(rewards)[:100]}
    assert mark_easy(part, 1.0, 0.3, 0.1, seed=0).kept == marks.kept & part.keys()
    assert mark_easy(rewards, 1.0, 0.3, 0.0, seed=0).easy_kept == frozenset()
    assert mark_easy(rewards, 1.0, 0.3, 1.0, seed=0).kept == rewards.keys()


def test_the_papers_threshold_taken_literally_marks_everything() -> None:
    marks = mark_easy({"a": 0.0, "b": 1.0}, 0.0, 0.3, 0.1, seed=0)
    with pytest.raises(
        ValueError, match=r"every one of 2 training .* raise EasySampleFilter's tau_easy, or leave"
    ):
        check_marks(marks, 2, calibrated=False)


@pytest.mark.parametrize(
    ("rewards", "tau_easy", "message"),
    [
        ([0.0, 0.0], None, r"no one of 2 .* raise EasySampleFilter's learning_rate, num_passes or tau_d"),
        ([0.5, 0.5], 0.9, r"no one of 2 .* lower EasySampleFilter's tau_easy"),
        ([1.0, 1.0], None, r"every one of 2 .* lower EasySampleFilter's tau_d, or train the copy less"),
    ],
)
def test_everything_or_nothing_easy_names_the_setting_to_change(
    rewards: list[float], tau_easy: float | None, message: str
) -> None:
    named = {str(i): reward for i, reward in enumerate(rewards)}
    with pytest.raises(ValueError, match=message):
        check_marks(mark_easy(named, tau_easy, 0.3, 0.1, 0), 2, calibrated=tau_easy is None)
    check_marks(mark_easy({"a": 0.0, "b": 1.0}, None, 0.3, 0.1, 0), 2, calibrated=True)


@given(tenths)
def test_every_reward_is_in_the_bin_of_its_tenth(rewards: list[float]) -> None:
    counts = histogram(rewards)
    assert counts == [sum(min(round(reward * 10), 9) == tenth for reward in rewards) for tenth in range(10)]


def test_the_histogram_as_text() -> None:
    assert render_histogram([4, 0, 1], width=8).splitlines() == [
        "0.0 ######## 4",
        "0.3          0",
        "0.7 ##       1",
    ]
    assert render_histogram([0, 0])[:4] == "0.0 "


def test_one_line_says_what_was_decided() -> None:
    easy = frozenset(f"e{i}" for i in range(412))
    kept = frozenset([f"e{i}" for i in range(38)] + [f"h{i}" for i in range(1010)])
    assert describe_marks(Marks(0.9, easy, kept), 1422) == (
        "412 of 1,422 training transitions are easy (mean reward >= 0.9); 38 of them kept, 1,048 remain"
    )


def test_mean_rewards_hold_similarities_against_the_filters_own_threshold() -> None:
    transitions = [make_transition(n, next_state=text) for n, text in enumerate(("aaab", "abab"))]
    predictions = [["aaab", "aabb", None], ["abab", "baba", "bbaa"]]
    # Letter counts (3, 1) against (2, 2): cosine 8 / (sqrt(10) sqrt(8)) = 0.894.
    strict = mean_rewards(LetterReward(0.2), 0.1, transitions, predictions)
    assert strict == {"t0": pytest.approx(1 / 3), "t1": 1.0}
    loose = mean_rewards(LetterReward(0.01), 0.2, transitions, predictions)
    assert loose == {"t0": pytest.approx(2 / 3), "t1": 1.0}
    assert mean_rewards(LetterReward(0.2), None, transitions, predictions) == loose


def test_a_reward_without_similarities_is_named() -> None:
    class Graded:
        success_similarity = 1.0

        def score(self, transitions: Sequence[Transition], predictions: Sequence[str | None]) -> list[Score]:
            return [Score(0.4, None, prediction is not None) for prediction in predictions]

    with pytest.raises(ValueError, match=r"data\.predictions\.reward \(Graded\) gives no similarity"):
        mean_rewards(Graded(), 0.1, [make_transition()], [["a"]])
    assert mean_rewards(Graded(), None, [make_transition()], [["a", "b"]]) == {"t0": 0.4}
