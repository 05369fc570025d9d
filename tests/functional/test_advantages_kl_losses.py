"""Formulas against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rwml_lightning.functional import (
    clipped_surrogate,
    group_advantages,
    kl_penalty,
    token_weights,
    truncated_importance_weights,
)

assert_close = torch.testing.assert_close


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        # mean 1/4; squares 9/16 + 3/16, divided by 3: standard deviation 1/2
        ("mean_std", [1.5, -0.5, -0.5, -0.5]),
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        # the others' mean: 0 for the winner, 1/3 for the rest
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_advantages_of_one_winner_in_four(normalisation, expected):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert_close(group_advantages(rewards, normalisation, eps=0.0), torch.tensor([expected]))


def test_eps_is_added_to_the_standard_deviation():
    assert_close(
        group_advantages(torch.tensor([[0.0, 2.0]]), eps=2 - math.sqrt(2)), torch.tensor([[-0.5, 0.5]])
    )


@pytest.mark.parametrize("normalisation", ["mean_std", "mean", "leave_one_out"])
@pytest.mark.parametrize("rewards", [[[0.7]], [[0.1] * 3, [0.7] * 3], [[1.0], [0.0]]])
def test_groups_without_variance_give_exactly_zero(normalisation, rewards):
    advantages = group_advantages(torch.tensor(rewards), normalisation, eps=0.0)
    assert torch.equal(advantages, torch.zeros_like(advantages))


def test_groups_do_not_touch_each_other():
    rewards = torch.tensor([[1.0, 0.0], [5.0, 5.0], [30.0, 10.0]])
    assert_close(group_advantages(rewards, "mean"), torch.tensor([[0.5, -0.5], [0.0, 0.0], [10.0, -10.0]]))


def test_kl_values():
    logprobs = torch.tensor([0.5, 0.25]).log()
    reference = torch.tensor([0.25, 0.5]).log()
    ln2 = math.log(2)
    assert_close(kl_penalty(logprobs, reference, "k1"), torch.tensor([ln2, -ln2]))
    assert_close(kl_penalty(logprobs, reference, "k2"), torch.tensor([ln2**2 / 2, ln2**2 / 2]))
    # q/p - 1 - log(q/p): 1/2 - 1 + ln 2, and 2 - 1 - ln 2
    assert_close(kl_penalty(logprobs, reference, "k3"), torch.tensor([ln2 - 0.5, 1 - ln2]))


@pytest.mark.parametrize(("estimator", "gradient"), [("k1", 1.0), ("k2", math.log(2)), ("k3", 0.5)])
def test_kl_gradients(estimator, gradient):
    logprobs = torch.tensor([0.5]).log().requires_grad_()
    reference = torch.tensor([0.25]).log().requires_grad_()
    kl_penalty(logprobs, reference, estimator).sum().backward()
    assert_close(logprobs.grad, torch.tensor([gradient]))
    assert reference.grad is None


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_kl_estimators_average_to_the_divergence(estimator):
    policy, reference = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    divergence = (policy * (policy / reference).log()).sum()
    assert_close((policy * kl_penalty(policy.log(), reference.log(), estimator)).sum(), divergence)


def test_clipped_surrogate():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.25])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, 1.0])
    logprobs = ratios.log().requires_grad_()
    surrogate = clipped_surrogate(logprobs, torch.zeros(6), advantages, clip_low=0.2, clip_high=0.28)
    # bounds 0.8 and 1.28: the first is held at 1.28 * 2, the fourth at 0.8 * -2; the rest are free
    assert_close(surrogate.loss, torch.tensor([-2.56, 3.0, -1.0, 1.6, -1.1, -1.25]))
    assert surrogate.clipped.tolist() == [True, False, False, True, False, False]
    assert_close(surrogate.ratio, ratios)
    surrogate.loss.sum().backward()
    assert_close(logprobs.grad, torch.tensor([0.0, 3.0, -1.0, 0.0, -1.1, -1.25]))


def test_on_the_first_update_the_gradient_is_that_of_reinforce():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -3.0])
    surrogate = clipped_surrogate(logprobs, logprobs, advantages)
    surrogate.loss.sum().backward()
    assert_close(logprobs.grad, -advantages)
    assert not surrogate.clipped.any()


@pytest.mark.parametrize(
    ("normaliser", "constant", "expected"),
    [
        ("sequence", None, [1 / 2, 1 / 8]),  # two sequences, of one token and of four
        ("token", None, [1 / 5, 1 / 5]),
        ("constant", 10, [1 / 20, 1 / 20]),
    ],
)
def test_token_weights(normaliser, constant, expected):
    assert_close(token_weights(torch.tensor([1, 4]), normaliser, constant), torch.tensor(expected))


def test_truncated_importance_weights():
    trainer = torch.tensor([0.8, 0.1, 0.5]).log().requires_grad_()
    generator = torch.tensor([0.2, 0.4, 0.5]).log()
    weights, ratio = truncated_importance_weights(trainer, generator, cap=2.0)
    assert_close(ratio, torch.tensor([4.0, 0.25, 1.0]))
    assert_close(weights, torch.tensor([2.0, 0.25, 1.0]))
    assert not weights.requires_grad
    assert not ratio.requires_grad


def test_non_finite_logprobs_are_not_hidden():
    weights, ratio = truncated_importance_weights(torch.tensor([math.nan]), torch.tensor([-1.0]))
    assert weights.isnan().all()
    assert ratio.isnan().all()
    weights, ratio = truncated_importance_weights(torch.tensor([-1.0]), torch.tensor([-math.inf]), cap=2.0)
    assert (weights.item(), ratio.item()) == (2.0, math.inf)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: group_advantages(torch.zeros(4)), r"shape \[groups, members\], not \[4\]"),
        (lambda: group_advantages(torch.zeros(1, 2), "std"), "normalisation must be .* not 'std'"),
        (lambda: kl_penalty(torch.zeros(1), torch.zeros(1), "k4"), "estimator must be .* not 'k4'"),
        (lambda: clipped_surrogate(*torch.zeros(3, 1), clip_low=1.5), "clip_low must lie in 0..1"),
        (lambda: clipped_surrogate(*torch.zeros(3, 1), clip_high=-0.1), "clip_high be at least 0"),
        (lambda: token_weights(torch.tensor([], dtype=torch.long)), "at least one sequence"),
        (lambda: token_weights(torch.tensor([2, 0])), "every length must be at least 1"),
        (lambda: token_weights(torch.tensor([2]), "mean"), "normaliser must be .* not 'mean'"),
        (lambda: token_weights(torch.tensor([2]), "constant"), "constant must be given"),
        (lambda: token_weights(torch.tensor([2]), "token", 3), "and only with it"),
        (lambda: token_weights(torch.tensor([2]), "constant", 0), "constant must be above 0"),
        (lambda: truncated_importance_weights(*torch.zeros(2, 1), cap=0), "cap must be above 0"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
