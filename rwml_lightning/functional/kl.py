"""Estimators of KL(policy || reference) from sampled tokens (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_penalty(
    logprobs: Float[Tensor, " tokens"],
    reference_logprobs: Float[Tensor, " tokens"],
    estimator: Estimator = "k3",
) -> Float[Tensor, " tokens"]:
    """Estimate KL(policy || reference) per token, at tokens x sampled from the policy p; q is the reference.

    The statements on average values and gradients hold for tokens sampled from the current p. Tokens from an older policy,
    as in later iterations on the same rollouts, are used without a correction.

    With d = log p(x) - log q(x), the value and its gradient as a loss term are:

    - ``k1``: d. Unbiased value, high variance, may be negative. Its gradient, grad log p, is 0 on average: good for
      logging or in a reward, useless in a loss.
    - ``k2``: d^2 / 2. Biased value. Its gradient, d * grad log p, is on average that of KL(p || q).
    - ``k3``: exp(-d) - 1 + d. Unbiased value, never negative, low variance. Its gradient, (1 - exp(-d)) * grad log p,
      is on average that of the reverse direction, KL(q || p), and equals that of k2 if p is close to q. GRPO uses it.

    Args:
        logprobs: Log-probabilities under the policy, in nats.
        reference_logprobs: Log-probabilities of the same tokens under the reference, in nats; treated as constants.
        estimator: See above.

    Returns:
        One estimate per token, in nats.

    Raises:
        ValueError: If ``estimator`` is unknown.
    """
    difference = logprobs - reference_logprobs.detach()
    match estimator:
        case "k1":
            return difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return torch.expm1(-difference) + difference
        case _:
            raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', not {estimator!r}")
