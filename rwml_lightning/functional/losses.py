"""The GRPO loss in parts: clipped surrogate, importance weights, and what each token counts.

A step's loss is the sum over its trained tokens of ``weight * (importance * surrogate + beta * kl)``: the importance
weight corrects the surrogate alone, and the KL term is an estimate over tokens as they were sampled. The weights are
those of the whole step, so it does not matter into how many micro-batches the tokens fall. ``modules/grpo.py`` puts the
parts together.
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
        loss: Term to minimise.
        ratio: Policy's probability over the old policy's; detached.
        clipped: Where clipping took the gradient away.
    """

    loss: Float[Tensor, " tokens"]
    ratio: Float[Tensor, " tokens"]
    clipped: Bool[Tensor, " tokens"]


class ImportanceWeights(NamedTuple):
    """Correction from the generator's distribution to the trainer's; both detached.

    Args:
        weights: min(ratio, cap), to multiply the surrogate by.
        ratio: Untruncated, for the log.
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
    """PPO's clipped objective (arXiv 1707.06347, equation 7) with a separate upper bound (DAPO, arXiv 2503.14476).

    With r = exp(logprobs - old_logprobs): loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Args:
        logprobs: Under the policy being trained, in nats.
        old_logprobs: Under the policy before this step's first update, as the trainer computes them; taken as
            constants. On the first update they are ``logprobs.detach()``: the ratio is 1 and the gradient is that of
            REINFORCE. From the generator's policy :func:`truncated_importance_weights` corrects.
        advantages: Each token's advantage, its sequence's as a rule.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far the ratio may rise above 1.

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
    """What each trained token of a sequence counts in the step's loss.

    Computed from all sequences of a step, before it is cut into micro-batches: then the micro-batches' losses add up to
    the loss of one large batch, and 1 x 8 accumulation equals 8 x 1. Index by sequence to get one weight a token.

    - ``sequence``: 1 / (sequences * length): mean over a sequence's tokens, then over sequences (GRPO).
    - ``token``: 1 / (tokens of all sequences): every token counts the same (DAPO, arXiv 2503.14476).
    - ``constant``: 1 / (sequences * constant), no length bias in either direction (Dr. GRPO, arXiv 2503.20783).

    Args:
        lengths: Number of sampled tokens of each sequence of the step; those whose advantage is 0, which cost no
            update where there is no KL penalty, count too.
        normaliser: See above.
        constant: Tokens a sequence is taken to have, usually the generator's ``max_tokens``.

    Returns:
        One weight a sequence.

    Raises:
        ValueError: If a length is below 1, ``normaliser`` is unknown, or ``constant`` is missing or out of place.
    """
    if lengths.numel() == 0 or int(lengths.min()) < 1:
        raise ValueError("lengths must name at least one sequence, and every sequence needs a trained token")
    if (constant is not None) != (normaliser == "constant"):
        raise ValueError("constant must be given with normaliser 'constant', and only then")
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
    """min(exp(trainer - generator), cap): the generator sampled from slightly other numbers than the trainer computes.

    A generator with its own kernels and precision is a slightly different policy, and one some updates behind a more
    different one; without this the gradient is biased ("Your efficient RL framework secretly brings you off-policy RL
    training", Yao et al. 2025). Capping bounds the variance. NaN passes through, and the caller stops on it and names
    the sample; a token that the generator calls impossible (-inf) gets the cap.

    Args:
        trainer_logprobs: Log-probabilities before this step's first update, as the trainer computes them, in nats:
            ``old_logprobs`` of :func:`clipped_surrogate`, on every iteration.
        generator_logprobs: The same tokens as the generator reported them when it sampled them.
        cap: Largest weight.

    Returns:
        Truncated weights and raw ratios.

    Raises:
        ValueError: If ``cap`` is not above 0.
    """
    if cap <= 0:
        raise ValueError(f"cap must be above 0, not {cap}")
    ratio = (trainer_logprobs.detach() - generator_logprobs.detach()).exp()
    return ImportanceWeights(ratio.clamp(max=cap), ratio)
