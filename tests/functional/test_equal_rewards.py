"""Rewards that differ by noise alone: no advantage, and a group without variance in the metrics."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.functional import group_advantages, step_advantages
from rwml_lightning.functional.advantages import Normalisation
from rwml_lightning.schema import (
    REWARD_TOLERANCE,
    ActionSample,
    Completion,
    Episode,
    EpisodeGroup,
    Group,
    Playthrough,
    Prediction,
    Score,
    same_rewards,
)
from support.worlds import make_transition

COMPLETION = Completion((1,), (0.0,), "stop", 0)


def predicted(*rewards: float) -> Group:
    members = tuple(
        Prediction(COMPLETION, "", "", "", Score(reward, None, True), 0.0, member)
        for member, reward in enumerate(rewards)
    )
    return Group(make_transition(), (), "", members)


def played(*rewards: float) -> EpisodeGroup:
    episode = Episode("e", "test", "g", "", 0, (), "")
    return EpisodeGroup(
        "g", "", tuple(Playthrough(episode, (ActionSample((), COMPLETION, r),)) for r in rewards)
    )


@pytest.mark.parametrize("normalisation", get_args(Normalisation))
@pytest.mark.parametrize(
    "rewards",
    [
        [0.5, 0.500001],  # would be -0.29 and 0.29
        [0.9, 0.9000004, 0.9, 0.8999996],
        [0.0, 1e-7],
        [-1e-6, 0.0, 1e-6],
        [10.0, 10.00005],  # ten times the scale, ten times the noise
        [-10.0, -10.00005],
    ],
)
def test_noise_is_no_advantage(rewards: list[float], normalisation: Any) -> None:
    assert group_advantages(torch.tensor([rewards]), normalisation).tolist() == [[0.0] * len(rewards)]
    steps = step_advantages(torch.tensor(rewards), ["same"] * len(rewards), normalisation)
    assert steps.tolist() == [0.0] * len(rewards)
    assert predicted(*rewards).zero_variance
    assert played(*rewards).zero_variance


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # deviations of 1e-4 from the mean; sample standard deviation sqrt(2) * 1e-4, and 1e-6 is added
        ([0.5, 0.5002], [-0.702142, 0.702142]),
        # mean 5e-5; squares 3 * 25e-10 + 225e-10, divided by 3: standard deviation 1e-4
        ([0.0, 0.0, 0.0, 2e-4], [-0.495050, -0.495050, -0.495050, 1.485149]),
    ],
)
def test_small_differences_that_are_no_noise_count(rewards: list[float], expected: list[float]) -> None:
    exact = torch.tensor([rewards], dtype=torch.float64)
    assert group_advantages(exact)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert not predicted(*rewards).zero_variance
    assert not played(*rewards).zero_variance


@given(
    st.floats(-20, 20),
    st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), min_size=1, max_size=8),
    st.sampled_from([1e-8, 1e-6, 3e-6, 2e-5, 1e-3, 1.0]),
)
def test_metrics_and_advantages_have_one_rule(base: float, deviations: list[float], size: float) -> None:
    rewards = [base + size * deviation * max(1.0, abs(base)) for deviation in deviations]
    advantages = group_advantages(torch.tensor([rewards], dtype=torch.float64), "mean")
    assert same_rewards(rewards) == (not advantages.any())


def test_the_rule_has_one_tolerance_and_no_members_are_the_same() -> None:
    assert inspect.signature(group_advantages).parameters["tolerance"].default == REWARD_TOLERANCE
    assert same_rewards([])
