"""Parts of the GRPO loss: clipped surrogate, importance weights and token weights.

The loss of a step is the sum over its trained tokens of ``weight * (importance * surrogate + beta * kl)``. The importance
weight corrects only the surrogate; the KL term is an estimate over the tokens as sampled. The token weights are computed
over the whole step, so the loss does not depend on the number of micro-batches. ``modules/grpo.py`` combines the parts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Normaliser = Literal["sequence", "token", "constant"]


class Surrogate(NamedTuple):
    """Per-token clipped surrogate.

    Args:
        loss: Loss term to minimise.
        ratio: Probability under the policy divided by the probability under the old policy; detached.
        clipped: Whether clipping removed the gradient of the token.
    """

    loss: Float[Tensor, " tokens"]
    ratio: Float[Tensor, " tokens"]
    clipped: Bool[Tensor, " tokens"]


class ImportanceWeights(NamedTuple):
    """Importance weights from the generator's distribution to the trainer's; both tensors are detached.

    Args:
        weights: min(ratio, cap), the factor on the surrogate.
        ratio: Ratio without truncation, for logging.
    """

    weights: Float[Tensor, " tokens"]
    ratio: Float[Tensor, " tokens"]


def clipped_surrogate(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Surrogate:
    """Compute PPO's clipped loss (arXiv 1707.06347, equation 7) with a separate upper bound (DAPO, arXiv 2503.14476).

    With r = exp(logprobs - old_logprobs): loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Args:
        logprobs: Log-probabilities under the current policy, in nats.
        old_logprobs: Log-probabilities under the policy before the first update of this step, computed by the trainer, in
            nats; treated as constants. In the first update they are ``logprobs.detach()``, so the ratio is 1 and the
            gradient is that of REINFORCE. :func:`truncated_importance_weights` corrects for the generator's policy.
        advantages: Advantage of each token, usually that of its sequence.
        clip_low: Largest decrease of the ratio below 1.
        clip_high: Largest increase of the ratio above 1.

    Returns:
        Loss terms, ratios and clipped tokens.

    Raises:
        ValueError: If a clip bound is out of range.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            f"clip_low must lie in 0..1 and clip_high be at least 0, not {clip_low} and {clip_high}"
        )
    ratio = (logprobs - old_logprobs.detach()).exp()
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return Surrogate(-torch.minimum(free, bounded), ratio.detach(), bounded.detach() < free.detach())


def token_weights(
    lengths: Int[Tensor, " sequences"],
    normaliser: Normaliser = "sequence",
    constant: float | None = None,
) -> Float[Tensor, " sequences"]:
    """Compute the weight of each trained token in the loss of a step, as one weight per sequence.

    The weights are computed from all sequences of a step, before it is split into micro-batches. The losses of the
    micro-batches then add up to the loss of one large batch, and 1 x 8 accumulation equals 8 x 1. Index the result by sequence
    to get one weight per token.

    - ``sequence``: 1 / (sequences * length): mean over the tokens of a sequence, then over sequences (GRPO).
    - ``token``: 1 / (tokens of all sequences): equal weight for every token (DAPO, arXiv 2503.14476).
    - ``constant``: 1 / (sequences * constant): no length bias in either direction (Dr. GRPO, arXiv 2503.20783).

    Args:
        lengths: Number of sampled tokens in each sequence of the step. Sequences with advantage 0 count too, although they
            need no update without a KL penalty.
        normaliser: See above.
        constant: Assumed length of every sequence in tokens, usually ``max_tokens`` of the generator.

    Returns:
        One weight per sequence.

    Raises:
        ValueError: If a length is below 1, ``normaliser`` is unknown, or ``constant`` is missing or out of place.
    """
    if lengths.numel() == 0 or int(lengths.min()) < 1:
        raise ValueError("lengths must have at least one sequence, and every length must be at least 1")
    if (constant is not None) != (normaliser == "constant"):
        raise ValueError("constant must be given with normaliser 'constant', and only with it")
    ones = torch.ones_like(lengths, dtype=torch.float32)
    match normaliser:
        case "sequence":
            return ones / (len(lengths) * lengths)
        case "token":
            return ones / lengths.sum()
        case "constant":
            assert constant is not None
            if constant <= 0:
                raise ValueError(f"constant must be above 0, not {constant}")
            return ones / (len(lengths) * constant)
        case _:
            raise ValueError(f"normaliser must be 'sequence', 'token' or 'constant', not {normaliser!r}")


def truncated_importance_weights(
    trainer_logprobs: Float[Tensor, " tokens"],
    generator_logprobs: Float[Tensor, " tokens"],
    cap: float = 2.0,
) -> ImportanceWeights:
    """Compute min(exp(trainer - generator), cap), which corrects the mismatch between generator and trainer.

    A generator with different kernels and precision samples from a slightly different policy, and a generator that lags some
    updates behind from a more different one. Without this correction the gradient is biased ("Your efficient RL framework
    secretly brings you off-policy RL training", Yao et al. 2025). The cap limits the variance. NaN propagates, so that the
    caller can stop and name the sample. A token with generator log-probability -inf gets the cap.

    Args:
        trainer_logprobs: Log-probabilities before the first update of this step, computed by the trainer, in nats
            (``old_logprobs`` of :func:`clipped_surrogate`); the same in every iteration.
        generator_logprobs: Log-probabilities of the same tokens, reported by the generator during sampling, in nats.
        cap: Largest weight.

    Returns:
        Truncated weights, and ratios without truncation.

    Raises:
        ValueError: If ``cap`` is not above 0.
    """
    if cap <= 0:
        raise ValueError(f"cap must be above 0, not {cap}")
    ratio = (trainer_logprobs.detach() - generator_logprobs.detach()).exp()
    return ImportanceWeights(ratio.clamp(max=cap), ratio)
