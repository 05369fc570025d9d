"""A test for "every N optimizer steps" that also holds when one batch takes several steps."""

from __future__ import annotations


def passes_multiple(step: int, taken: int, every: int) -> bool:
    """Return whether one of the last ``taken`` steps up to and including ``step`` is a multiple of ``every``.

    Example:
        >>> [step for step in range(3, 25, 3) if passes_multiple(step, 3, 5)]
        [6, 12, 15, 21]
    """
    return step // every > (step - taken) // every
