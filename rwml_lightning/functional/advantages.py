"""Group-relative advantages: for episodes (GRPO, arXiv 2402.03300, section 4.1.2) and for steps (GiGPO, arXiv 2505.10978)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Normalisation = Literal["mean_std", "mean", "leave_one_out"]


def group_advantages(
    rewards: Float[Tensor, "groups members"],
    normalisation: Normalisation = "mean_std",
    eps: float = 1e-6,
    tolerance: float = 1e-5,
) -> Float[Tensor, "groups members"]:
    """Compute the advantage of each member relative to its group.

    - ``mean_std``: (r - mean) / (std + eps), as in RWML and GRPO. This is the sample standard deviation (divided by
      members - 1), as in TRL and verl, so that runs can be compared with theirs.
    - ``mean``: r - mean, which does not amplify nearly constant groups (Dr. GRPO, arXiv 2503.20783).
    - ``leave_one_out``: r - mean of the others, an unbiased baseline (RLOO, arXiv 2402.14740).

    The advantage is exactly 0 in a group with a single member and in a group with equal rewards, because such groups carry
    no preference. Rewards count as equal if they differ by at most ``tolerance`` (relative to their magnitude if it is above
    1). This is necessary because float32 cosines have noise of about 1e-6, and division by its standard deviation would
    scale this noise to the usual size of advantages. (GRPO's formula has no such rule; TRL's eps of 1e-4 damps the noise,
    but also slightly reduces all other advantages.)

    Args:
        rewards: Rewards, one row per group.
        normalisation: See above.
        eps: Constant added to the standard deviation.
        tolerance: Largest difference of rewards that count as equal; the metrics use
            :func:`rwml_lightning.schema.same_rewards`.

    Returns:
        Advantages with the shape of ``rewards``.

    Raises:
        ValueError: If ``rewards`` is not two-dimensional or ``normalisation`` is unknown.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have the shape [groups, members], not {list(rewards.shape)}")
    members = rewards.shape[1]
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    match normalisation:
        case "mean_std":
            variance = centred.square().sum(dim=1, keepdim=True) / max(members - 1, 1)
            advantages = centred / (variance.sqrt() + eps)
        case "mean":
            advantages = centred
        case "leave_one_out":
            advantages = centred * members / max(members - 1, 1)
        case _:
            raise ValueError(
                f"normalisation must be 'mean_std', 'mean' or 'leave_one_out', not {normalisation!r}"
            )
    low, high = rewards.amin(dim=1, keepdim=True), rewards.amax(dim=1, keepdim=True)
    constant = high - low <= tolerance * high.abs().clamp(min=1.0)
    return torch.where(constant, 0.0, advantages)


def discounted_returns(rewards: Float[Tensor, " turns"], discount: float = 1.0) -> Float[Tensor, " turns"]:
    """Compute the discounted return of each turn: R_t = r_t + discount * R_{t+1} (GiGPO, equation 6)."""
    returns = torch.empty_like(rewards)
    following = torch.zeros((), dtype=rewards.dtype)
    for turn in range(len(rewards) - 1, -1, -1):
        following = rewards[turn] + discount * following
        returns[turn] = following
    return returns


def step_advantages(
    returns: Float[Tensor, " steps"],
    anchors: Sequence[Hashable],
    normalisation: Normalisation = "mean_std",
) -> Float[Tensor, " steps"]:
    """Compute the advantage of each step relative to the steps of its group in the same state (GiGPO, section 4.2).

    Args:
        returns: Discounted returns of all steps in all episodes of one group.
        anchors: State of each step before its action; steps with equal states are compared. The advantage is 0 for a state
            that only one step visited.
        normalisation: See :func:`group_advantages`.

    Returns:
        One advantage per step.
    """
    visits: dict[Hashable, list[int]] = {}
    for step, anchor in enumerate(anchors):
        visits.setdefault(anchor, []).append(step)
    advantages = torch.zeros_like(returns)
    for steps in visits.values():
        advantages[steps] = group_advantages(returns[steps][None], normalisation)[0]
    return advantages
