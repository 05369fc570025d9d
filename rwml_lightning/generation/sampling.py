"""Drawing tokens from logits by inverse transform: one uniform number a token, decided by the sample's seed alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(seeds: list[int], num_tokens: int) -> Float[Tensor, "sample token"]:
    """Uniform numbers in [0, 1) for each sample's tokens; a longer draw begins with the shorter one.

    Drawn on the CPU, so that they are the same whatever device samples with them.
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
    """Draw a token from every row of logits.

    The token is where the cumulative distribution passes the uniform number. On a CPU that is some forty times
    faster than ``torch.multinomial``; sums are in double precision, since a vocabulary is long.

    Args:
        logits: Unnormalised log-probabilities.
        uniform: A number in [0, 1) for every row.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_p: Only the smallest set of most probable tokens whose probability reaches this is drawn from.

    Returns:
        Token ids, and their log-probabilities under the distribution drawn from (temperature 0: under that of
        temperature 1).
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
    # Rounding may lift uniform * total to total, beyond the last token.
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
