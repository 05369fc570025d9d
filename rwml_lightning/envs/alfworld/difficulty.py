"""How much there is in a generated game."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Limits on what a room holds; what a task needs is there in any case.

    Args:
        max_receptacles: Most pieces of furniture to search.
        max_objects: Most things lying about.
        max_copies: Most of one class.
    """

    max_receptacles: int
    max_objects: int
    max_copies: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"difficulty.{name}: {getattr(self, name)} is not at least 1")


LEVELS = {
    "minimal": Difficulty(max_receptacles=3, max_objects=4, max_copies=1),
    "tiny": Difficulty(max_receptacles=5, max_objects=6, max_copies=1),
    "small": Difficulty(max_receptacles=10, max_objects=14, max_copies=2),
    "full": Difficulty(max_receptacles=100, max_objects=100, max_copies=3),
}
"""Levels by name; ``full`` has all furniture and all classes of the floor plan."""


def as_difficulty(difficulty: str | Difficulty) -> Difficulty:
    """A level by its name.

    Raises:
        ValueError: No such level.
    """
    if isinstance(difficulty, Difficulty):
        return difficulty
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty: {difficulty!r} is none of {', '.join(LEVELS)}")
    return LEVELS[difficulty]
