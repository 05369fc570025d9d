from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.generation.sampling import sample_tokens, uniforms

PROBABILITIES = torch.tensor([0.2, 0.0, 0.3, 0.5])


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.19, 0), (0.21, 2), (0.49, 2), (0.51, 3), (1 - 2**-53, 3)]
)
def test_inverse_transform_by_hand(uniform: float, token: int) -> None:
    tokens, logprobs = sample_tokens(PROBABILITIES.log()[None], torch.tensor([uniform], dtype=torch.float64))
    assert tokens.tolist() == [token]
    assert logprobs.item() == pytest.approx(math.log(PROBABILITIES[token]), abs=1e-6)


def test_temperature_by_hand() -> None:
    # Halving the temperature squares the probabilities: 0.04, 0.09, 0.25 of 0.38.
    tokens, logprobs = sample_tokens(PROBABILITIES.log()[None], torch.tensor([0.2], dtype=torch.float64), 0.5)
    assert tokens.tolist() == [2]
    assert logprobs.item() == pytest.approx(math.log(0.09 / 0.38), abs=1e-6)


def test_greedy_reports_temperature_one() -> None:
    tokens, logprobs = sample_tokens(PROBABILITIES.log()[None], torch.tensor([0.0], dtype=torch.float64), 0.0)
    assert tokens.tolist() == [3]
    assert logprobs.item() == pytest.approx(math.log(0.5), abs=1e-6)


@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 30)), min_size=1, max_size=40),
    st.one_of(st.just(1 - 2**-53), st.floats(0, 1, exclude_max=True)),
    st.floats(0.1, 1.0),
)
def test_impossible_tokens_are_never_drawn(logits: list[float], uniform: float, top_p: float) -> None:
    logits = [*logits, 0.0, -math.inf]
    tokens, logprobs = sample_tokens(
        torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), 1.0, top_p
    )
    assert logits[tokens.item()] > -math.inf
    assert math.isfinite(logprobs.item())
    assert logprobs.item() <= 1e-5


def test_frequencies_follow_the_distribution() -> None:
    uniform = uniforms([3], 20_000)[0]
    tokens, _ = sample_tokens(PROBABILITIES.log().expand(20_000, -1), uniform)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, PROBABILITIES, atol=0.02, rtol=0)  # five standard errors


def test_uniforms_of_a_seed_do_not_depend_on_how_many_are_drawn() -> None:
    assert torch.equal(uniforms([1, 2], 5), uniforms([1, 2], 50)[:, :5])
    assert torch.equal(uniforms([2], 5)[0], uniforms([1, 2], 5)[1])
    assert uniforms([], 5).shape == (0, 5)
