"""Sample tokens from logits by inverse transform, with one uniform number per token that depends only on the seed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(seeds: list[int], num_tokens: int) -> Float[Tensor, "sample token"]:
    """Draw uniform numbers in [0, 1) for the tokens of each sample.

    More tokens extend the sequence of a seed and do not change its beginning. The numbers are drawn on the CPU, so that
    they are the same for sampling on any device.
    """
    rows = [
        torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows) if rows else torch.empty(0, num_tokens, dtype=torch.float64)


def sample_tokens(
    logits: Float[Tensor, "sample vocab"],
    uniform: Float[Tensor, " sample"],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, " sample"], Float[Tensor, " sample"]]:
    """Sample one token from each row of logits.

    The token is the first with a cumulative probability above the uniform number. On a CPU this is about forty times
    faster than ``torch.multinomial``. Sums are in double precision because a vocabulary is large.

    Args:
        logits: Unnormalised log-probabilities.
        uniform: One number in [0, 1) per row.
        temperature: Divisor of the logits; 0 selects the most probable token.
        top_p: Probability of the nucleus; tokens outside the smallest set of most probable tokens that reaches it are
            excluded.

    Returns:
        Token ids, and their log-probabilities under the sampled distribution (at temperature 0, under the distribution
        at temperature 1).
    """
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    logits = logits / temperature
    if top_p < 1:
        logits = _nucleus(logits, top_p)
    highest = logits.amax(-1, keepdim=True)
    cumulative = (logits - highest).exp_().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Rounding may raise uniform * total to total, which is beyond the last token.
    threshold = torch.minimum(
        uniform[:, None].to(total) * total, torch.nextafter(total, torch.zeros_like(total))
    )
    tokens = torch.searchsorted(cumulative, threshold, right=True)
    logprobs = logits.gather(-1, tokens) - highest - total.log().to(logits.dtype)
    return tokens[:, 0], logprobs[:, 0]


def _nucleus(logits: Float[Tensor, "sample vocab"], top_p: float) -> Float[Tensor, "sample vocab"]:
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    return logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
