"""Difficulty levels of generated games: limits on furniture and objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Limits on the contents of a room. Everything that the task needs is always in the room, whatever the limits.

    Args:
        max_receptacles: Maximum number of receptacles (pieces of furniture).
        max_objects: Maximum number of objects.
        max_copies: Maximum number of objects of one class.
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
"""Difficulty by level name. ``full`` has all furniture and all classes of the floor plan."""


def as_difficulty(difficulty: str | Difficulty) -> Difficulty:
    """Return the difficulty of a level name. A ``Difficulty`` is returned unchanged.

    Raises:
        ValueError: The level does not exist.
    """
    if isinstance(difficulty, Difficulty):
        return difficulty
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty: {difficulty!r} is not one of {', '.join(LEVELS)}")
    return LEVELS[difficulty]
