"""Advantages relative to a group: of episodes (GRPO, arXiv 2402.03300, section 4.1.2) and of steps (GiGPO, arXiv 2505.10978)."""

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
    """How much better each member did than its group.

    - ``mean_std``: (r - mean) / (std + eps), as RWML and GRPO have it. The standard deviation is the sample one
      (divided by members - 1), as in TRL and verl, so that runs can be compared with theirs.
    - ``mean``: r - mean, which does not blow up nearly constant groups (Dr. GRPO, arXiv 2503.20783).
    - ``leave_one_out``: r - mean of the others, an unbiased baseline (RLOO, arXiv 2402.14740).

    A group of one and a group whose rewards are equal give exactly 0: they say nothing about what to prefer. Equal are rewards
    that differ by no more than ``tolerance``, times their magnitude where it is above 1:
    float32 cosines carry noise of about 1e-6, which a division by its own standard deviation would turn into advantages of
    the usual size. (GRPO's formula has no such rule; TRL's eps of 1e-4 damps the noise, and everything else a little.)

    Args:
        rewards: One row a group.
        normalisation: See above.
        eps: Added to the standard deviation.
        tolerance: Largest difference of rewards that count as equal; the metrics' rule is
            :func:`rwml_lightning.schema.same_rewards`.

    Returns:
        Advantages, shaped as ``rewards``.

    Raises:
        ValueError: If ``rewards`` is not a table or ``normalisation`` is unknown.
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
    """What is still to come from each turn on: R_t = r_t + discount * R_{t+1} (GiGPO, equation 6)."""
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
    """How much better each step did than the other steps of its group that acted in the same state (GiGPO, section 4.2).

    Args:
        returns: Discounted return of every step of all episodes of one group.
        anchors: State in which each step acted; steps with equal ones are compared. A state that only one step visited
            gives 0.
        normalisation: As for :func:`group_advantages`.

    Returns:
        One value a step.
    """
    visits: dict[Hashable, list[int]] = {}
    for step, anchor in enumerate(anchors):
        visits.setdefault(anchor, []).append(step)
    advantages = torch.zeros_like(returns)
    for steps in visits.values():
        advantages[steps] = group_advantages(returns[steps][None], normalisation)[0]
    return advantages
