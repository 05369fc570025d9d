"""When something is due that happens every N optimizer steps, while a batch may take several."""

from __future__ import annotations


def passes_multiple(step: int, taken: int, every: int) -> bool:
    """Whether the last ``taken`` steps, of which ``step`` is the latest, hold a multiple of ``every``.

    Example:
        >>> [step for step in range(3, 25, 3) if passes_multiple(step, 3, 5)]
        [6, 12, 15, 21]
    """
    return step // every > (step - taken) // every
