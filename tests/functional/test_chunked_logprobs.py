"""The chunked head against ``log_softmax`` of full logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwml_lightning.functional import chunked_logprobs, logprobs_from_logits

TOKENS, WIDTH, VOCABULARY = 11, 6, 17


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, bias, targets


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
@pytest.mark.parametrize("use", ["logprobs", "entropy", "both"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"bias": True},
        {"bias": True, "scale": 0.3, "softcap": 1.5, "temperature": 1.7},
    ],
)
def test_equals_log_softmax(chunk_size, use, options):
    hidden, weight, bias, targets = tensors()
    options = {**options, "bias": bias if options.get("bias") else None}
    inputs = [hidden, weight] + ([] if options["bias"] is None else [bias])

    logits = hidden @ weight.T + (0 if options["bias"] is None else bias)
    logits = logits * options.get("scale", 1.0)
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    expected = logprobs_from_logits(logits, targets, options.get("temperature", 1.0))
    actual = chunked_logprobs(hidden, weight, targets, chunk_size, **options)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)

    coefficients = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    used = {"logprobs": (1, 0), "entropy": (0, 1), "both": (1, 1)}[use]

    def gradients(values):
        terms = [(coefficients * value).sum() for value, wanted in zip(values, used, strict=True) if wanted]
        return torch.autograd.grad(sum(terms), inputs)

    torch.testing.assert_close(gradients(actual), gradients(expected), atol=1e-12, rtol=0)


def test_by_hand():
    """Logits log 1, log 2, log 5 (times 2 at temperature 1/2: 1, 4, 25)."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([1.0, 2.0, 5.0]).log()[:, None]
    actual = chunked_logprobs(hidden, weight, torch.tensor([2]), temperature=0.5)
    probabilities = torch.tensor([1.0, 4.0, 25.0]) / 30
    torch.testing.assert_close(actual.logprobs, probabilities[2:].log())
    torch.testing.assert_close(actual.entropy, -(probabilities * probabilities.log()).sum()[None])


def test_what_needs_no_gradient_gets_none():
    hidden, weight, _, targets = tensors()
    chunked_logprobs(hidden, weight.detach(), targets, 4).logprobs.sum().backward()
    frozen_head = hidden.grad.clone()
    hidden.grad = None
    chunked_logprobs(hidden, weight, targets, 4).logprobs.sum().backward()
    torch.testing.assert_close(frozen_head, hidden.grad)
    weight.grad = None
    chunked_logprobs(hidden.detach(), weight, targets, 4).logprobs.sum().backward()
    assert weight.grad is not None


def test_large_logits_stay_finite():
    hidden = torch.tensor([[200.0, -200.0]], requires_grad=True)
    actual = chunked_logprobs(hidden, torch.eye(2) * 10, torch.tensor([1]))
    torch.testing.assert_close(actual.logprobs, torch.tensor([-4000.0]))
    actual.logprobs.sum().backward()
    assert hidden.grad.isfinite().all()


def test_bfloat16_is_summed_in_float32():
    """Gradients of many chunks add up in float32: 0.02 of the largest entry is what bfloat16 inputs allow."""
    hidden, weight, _, targets = tensors(torch.bfloat16)
    actual = chunked_logprobs(hidden, weight, targets, chunk_size=1)
    assert actual.logprobs.dtype == torch.float32
    exact = logprobs_from_logits(hidden.double() @ weight.double().T, targets)
    torch.testing.assert_close(actual.logprobs.double(), exact.logprobs, atol=0.03, rtol=0)
    gradients = torch.autograd.grad(actual.logprobs.sum(), [hidden, weight])
    for gradient, expected in zip(
        gradients, torch.autograd.grad(exact.logprobs.sum(), [hidden, weight]), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_autocast_uses_one_precision_in_both_passes():
    hidden, weight, _, targets = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = chunked_logprobs(hidden, weight, targets).logprobs
    gradient = torch.autograd.grad(actual.sum(), hidden)[0]
    rounded, head = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16()
    expected = chunked_logprobs(rounded, head, targets).logprobs
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), rounded)[0].float())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_bad_arguments(options, match):
    hidden, weight, _, targets = tensors()
    with pytest.raises(ValueError, match=match):
        chunked_logprobs(hidden, weight, targets, **options)
