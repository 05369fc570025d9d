"""Which requests are refused, at their bounds, and the arithmetic of drawing a token, at its ends."""

from __future__ import annotations

import math

import pytest
import torch

from rwml_lightning.generation.base import check_prompts, check_trainable
from rwml_lightning.generation.sampling import sample_tokens, uniforms
from rwml_lightning.schema import Sampling


def test_what_just_fits_is_taken() -> None:
    check_prompts([[1] * 6, [2]], [[0], []], Sampling(4), 10)
    check_prompts([[1]], [[0]], Sampling(1, temperature=0.0, top_p=1.0), 2)
    check_prompts([], [], Sampling(1, top_p=1e-6), 2)


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [
        ([[1], [1] * 7], Sampling(4), r"prompt 1 has 7 tokens; with max_tokens=4 it exceeds the context of 10 \(max"),
        ([[1], []], Sampling(4), "prompt 1 is empty"),
        ([[1], [2]], Sampling(0), "need max_tokens >= 1"),
        ([[1], [2]], Sampling(4, temperature=-0.1), "need max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1"),
        ([[1], [2]], Sampling(4, top_p=0.0), "need max_tokens >= 1"),
        ([[1], [2]], Sampling(4, top_p=1.1), r"not Sampling\(max_tokens=4, temperature=1.0, top_p=1.1\)"),
        ([[1], [2], [3]], Sampling(4), "3 prompts but seeds for 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(
    prompts: list[list[int]], sampling: Sampling, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts, [[0], [0]], sampling, 10)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            Sampling(1, top_p=0.99),
            r"^data\.predictions\.sampling\.top_p is 0\.99, but log-probabilities in training",
        ),
        (
            Sampling(1, temperature=0.0),
            r"^data\.predictions\.sampling\.temperature is 0\.0; training needs a",
        ),
        (Sampling(1, temperature=-1.0), r"^data\.predictions\.sampling\.temperature is -1"),
        (Sampling(1, temperature=math.inf), r"^data\.predictions\.sampling\.temperature is inf"),
    ],
)
def test_training_takes_the_whole_distribution(sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_trainable(sampling, "data.predictions.sampling")
    check_trainable(Sampling(1, temperature=0.5), "data.predictions.sampling")


def draw(logits: torch.Tensor, uniform: float, **sampling: float) -> tuple[int, float]:
    numbers = torch.tensor([uniform], dtype=torch.float64)
    token, logprob = sample_tokens(logits[None], numbers, **sampling)
    assert logprob.dtype == torch.float32
    return token.item(), logprob.item()


HALVES = torch.tensor([0.5, 0.5]).log()


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.5, {0}), (0.51, {0, 1}), (0.49, {0}), (1.0, {0, 1}), (1e-9, {0})]
)
def test_the_nucleus_is_no_larger_than_it_must_be(top_p: float, tokens: set[int]) -> None:
    drawn = [draw(HALVES, uniform, top_p=top_p) for uniform in (0.0, 0.4, 0.6, 0.999)]
    assert {token for token, _ in drawn} == tokens
    assert [logprob for _, logprob in drawn] == pytest.approx([-math.log(len(tokens))] * 4, abs=1e-6)


def test_the_nucleus_is_of_the_distribution_at_the_temperature() -> None:
    """0.6 and 0.4 become 0.69 and 0.31 at half the temperature, so that 0.65 is one token there and two at 1."""
    logits = torch.tensor([0.4, 0.6]).log()
    assert draw(logits, 0.0, temperature=0.5, top_p=0.65) == (1, pytest.approx(0.0, abs=1e-6))
    assert draw(logits, 0.0, temperature=1.0, top_p=0.65)[0] == 0


def test_a_uniform_number_on_a_boundary_takes_the_next_token() -> None:
    """Intervals are closed below: a number of [0, 1) falls into each with its probability."""
    assert [draw(HALVES, uniform)[0] for uniform in (0.0, math.nextafter(0.5, 0), 0.5)] == [0, 0, 1]


def test_no_rounding_reaches_past_the_last_token() -> None:
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    logits[-3:] = -math.inf
    token, _ = draw(logits, 1 - 2**-53)
    assert token == 50_000 - 4


def test_large_logits_and_low_precision_do_no_harm() -> None:
    """Shifting all logits changes nothing, and half precision is left before anything is computed."""
    assert draw(HALVES + 1000, 0.6) == (1, pytest.approx(math.log(0.5), abs=1e-4))
    logits = torch.linspace(-1, 1, 300).to(torch.bfloat16)
    for sampling in ({}, {"temperature": 0.7}, {"top_p": 0.5}, {"temperature": 0.0}):
        assert draw(logits, 0.37, **sampling) == draw(logits.float(), 0.37, **sampling)


def test_each_row_has_its_own_number() -> None:
    rows = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]).log()
    tokens, logprobs = sample_tokens(rows, torch.tensor([0.05, 0.95, 0.2], dtype=torch.float64))
    assert tokens.tolist() == [0, 1, 0]
    assert logprobs.exp().tolist() == pytest.approx([0.1, 0.1, 0.5], abs=1e-6)
    tokens, _ = sample_tokens(rows, torch.zeros(3, dtype=torch.float64), temperature=0.0)
    assert tokens.tolist() == [1, 0, 0]


def test_numbers_are_of_double_precision_and_of_their_seeds() -> None:
    drawn = uniforms([7, 8], 3)
    expected = [
        torch.rand(3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (7, 8)
    ]
    assert torch.equal(drawn, torch.stack(expected))
    empty = uniforms([], 4)
    assert (empty.shape, empty.dtype) == ((0, 4), torch.float64)
