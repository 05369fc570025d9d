"""Number of weights that training changed (arXiv 2602.05842, analysis of parameter change)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def count_changed(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], tolerance: float = 1e-3
) -> int:
    """Count scalars with |after - before| > tolerance * max(|after|, |before|).

    Both are compared in the dtype of ``after``, so that rounding to this dtype does not count as a change.

    Args:
        before: Weight at the start.
        after: The same weight now.
        tolerance: Largest relative difference that does not count as a change (paper: 1e-3).

    Raises:
        ValueError: If the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"the shapes differ: {tuple(before.shape)} before, {tuple(after.shape)} after")
    old, new = before.to(after).float(), after.float()
    return int(((new - old).abs() > tolerance * old.abs().maximum(new.abs())).sum())
