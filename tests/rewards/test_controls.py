"""Controls know nothing, follow from their position, and leave the true reward visible."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.functional import group_advantages
from rwml_lightning.rewards.base import NO_PREDICTION
from rwml_lightning.rewards.controls import Control, coin, derangement, permuted
from rwml_lightning.schema import Score
from support.rewards import LetterReward
from support.worlds import make_transition, make_world


def scores_of(*rewards: float) -> list[Score | None]:
    return [Score(reward, reward, True) for reward in rewards]


@given(st.lists(st.sampled_from("aaabcdefg"), min_size=2, max_size=40), st.integers(0, 1000))
def test_a_derangement_exchanges_texts_as_well_as_can_be(texts: list[str], seed: int) -> None:
    places = derangement(texts, seed)
    assert sorted(places) == list(range(len(texts)))
    assert all(place != i for i, place in enumerate(places))
    clashes = sum(texts[place] == texts[i] for i, place in enumerate(places))
    assert clashes == max(0, 2 * max(Counter(texts).values()) - len(texts))  # fewer cannot be


def test_a_derangement_follows_from_the_seed() -> None:
    texts = [str(n % 7) for n in range(50)]
    assert derangement(texts, 1) == derangement(texts, 1) != derangement(texts, 2)
    with pytest.raises(ValueError, match="control is 'mismatched', which needs at least two transitions"):
        derangement(["a"], 0)


def test_a_coin_is_fair_and_does_not_look() -> None:
    flips = [score.reward for seed in range(500) for score in coin([NO_PREDICTION] * 8, seed) if score]
    assert set(flips) == {0.0, 1.0}
    assert abs(sum(flips) / 4000 - 0.5) < 0.03  # four standard errors
    assert coin(scores_of(1, 1, 1), 5) == coin(scores_of(0, 1, 0), 5)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=8),
    st.sampled_from(["mean_std", "mean", "leave_one_out"]),
    st.integers(0, 1000),
)
def test_permuted_rewards_are_permuted_advantages(rewards: list[float], kind: Any, seed: int) -> None:
    scores = scores_of(*rewards)
    told = permuted(scores, seed)
    places = [score.reward for score in permuted(scores_of(*range(len(rewards))), seed) if score]
    advantages = group_advantages(torch.tensor([rewards]), kind)[0]
    shuffled = group_advantages(torch.tensor([[score.reward for score in told if score]]), kind)[0]
    assert shuffled.tolist() == pytest.approx(advantages[[int(place) for place in places]].tolist(), abs=1e-5)


def test_every_order_of_a_group_comes_up() -> None:
    orders = Counter(
        tuple(score.reward for score in permuted(scores_of(0, 1, 2), seed) if score) for seed in range(600)
    )
    assert len(orders) == 6
    assert all(60 < count < 140 for count in orders.values())


@pytest.mark.parametrize("name", ["mismatched", "coin", "permuted"])
def test_a_control_changes_the_reward_alone_and_repeats(name: Any) -> None:
    world, reward = make_world()[:6], LetterReward(tau_d=0.01)
    answers = [[t.next_state, None, "nonsense"] for t in world]
    true = [reward.score([t] * 3, row) for t, row in zip(world, answers, strict=True)]
    told = Control(name, 3, world).apply(reward, ("wm_grpo", 7), world, answers, true)
    again = Control(name, 3, world).apply(reward, ("wm_grpo", 7), world, answers, true)
    assert told == again
    pairs = [pair for rows in zip(true, told, strict=True) for pair in zip(*rows, strict=True)]
    for before, after in pairs:
        assert before is not None
        assert after is not None
        assert after.parts == {**before.parts, "true_reward": before.reward}
        assert (after.similarity, after.well_formed) == (before.similarity, before.well_formed)
    assert [before.reward for before, _ in pairs if before] != [after.reward for _, after in pairs if after]
    if name == "mismatched":
        assert all(after.reward == 0 for _, after in pairs if after)  # what is right is now wrong
    else:
        elsewhere = Control(name, 3, world).apply(reward, ("wm_grpo", 8), world, answers, true)
        assert elsewhere != told


def test_mismatched_pays_for_the_other_target() -> None:
    world, reward = make_world()[:4], LetterReward(tau_d=0.01)
    control = Control("mismatched", 0, world)
    answers = [[control.targets[t.transition_id]] for t in world]
    true = [reward.score([t], row) for t, row in zip(world, answers, strict=True)]
    told = control.apply(reward, ("wm_grpo", 0), world, answers, true)
    assert [score.reward for row in told for score in row if score] == [1, 1, 1, 1]
    assert [score.parts["true_reward"] for row in told for score in row if score] == [0, 0, 0, 0]


def test_a_missing_verdict_stays_missing() -> None:
    told = Control("coin", 0, []).apply(
        LetterReward(), ("wm_grpo", 0), [make_transition()], [["a", "b"]], [[None, NO_PREDICTION]]
    )
    assert told[0][0] is None
    assert told[0][1] is not None


@pytest.mark.parametrize("name", ["coin", "permuted"])
def test_each_group_has_a_draw_of_its_own(name: Any) -> None:
    world = make_world()[:12]
    scores = [scores_of(0, 1, 2, 3, 4, 5, 6, 7)] * len(world)
    answers: list[list[str | None]] = [["a"] * 8] * len(world)
    told = Control(name, 3, world).apply(LetterReward(), ("wm_grpo", 7), world, answers, scores)
    draws = {tuple(score.reward for score in row if score) for row in told}
    assert len(draws) >= 10  # of 2**8 rows of coins or 8! orders, two of twelve may be equal


@pytest.mark.parametrize("name", ["coin", "permuted"])
def test_a_group_has_its_draw_whatever_stands_beside_it(name: Any) -> None:
    world, scores = make_world()[:4], [scores_of(0, 1, 2, 3, 4, 5, 6, 7)]
    control, answers = Control(name, 3, world), [["a"] * 8]
    together = control.apply(LetterReward(), ("wm_grpo", 7), world, answers * 4, scores * 4)
    alone = [control.apply(LetterReward(), ("wm_grpo", 7), [t], answers, scores)[0] for t in world]
    assert together == alone
