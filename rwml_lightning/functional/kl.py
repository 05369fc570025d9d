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
    """Per-token estimate of KL(policy || reference) at tokens x that the policy p sampled; q is the reference.

    What is said of values and gradients on average holds for tokens that p itself sampled. Tokens of an older policy, as
    on later iterations on one rollout, are taken as they are, without a correction.

    With d = log p(x) - log q(x), value and gradient as a loss term are:

    - ``k1``: d. Unbiased value, high variance, may be negative. Its gradient, grad log p, is 0 on average: good for
      logging or inside a reward, useless in a loss.
    - ``k2``: d^2 / 2. Biased value. Its gradient, d * grad log p, is on average that of KL(p || q).
    - ``k3``: exp(-d) - 1 + d. Unbiased value, never negative, low variance. Its gradient, (1 - exp(-d)) * grad log p,
      is on average that of the other direction, KL(q || p), and equals k2's where p is close to q (GRPO's choice).

    Args:
        logprobs: Log-probabilities under the policy, in nats.
        reference_logprobs: The same tokens under the reference; taken as constants.
        estimator: See above.

    Returns:
        One estimate a token, in nats.

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
