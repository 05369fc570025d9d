"""How many weights training moved (arXiv 2602.05842, analysis of parameter change)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def count_changed(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], tolerance: float = 1e-3
) -> int:
    """Number of scalars with |after - before| > tolerance * max(|after|, |before|).

    Both are compared as ``after``'s dtype stores them, so that rounding to it is no change.

    Args:
        before: Weight at the start.
        after: The same weight now.
        tolerance: Relative change that does not count yet (paper: 1e-3).

    Raises:
        ValueError: The shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"the shapes differ: {tuple(before.shape)} before, {tuple(after.shape)} after")
    old, new = before.to(after).float(), after.float()
    return int(((new - old).abs() > tolerance * old.abs().maximum(new.abs())).sum())
