"""The loader of every stage: positions become batches, which are made on the spot."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from rwml_lightning.seeds import derive_seed

Item = TypeVar("Item")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Draw(Generic[Item, Batch]):
    """Items that steps are made from.

    Args:
        items: Transitions, games or labels.
        batch_size: Items a step.
        make: Makes a batch from (step, items of one rank).
        num_passes: How often every item is used.
        in_parts: Whether items that stand together stay together, as the turns of an episode do.
    """

    items: Sequence[Item]
    batch_size: int
    make: Callable[[int, Sequence[Item]], Batch]
    num_passes: int = 1
    in_parts: bool = False


class StepLoader(Generic[Item, Batch]):
    """Turns positions into batches: the items of step n follow from the seed and n alone.

    Each pass is a new permutation, and all passes make up one Lightning epoch, so that a position is one number. The
    length is known, so Lightning fetches no batch ahead: a batch is made after the weights of the step before it have
    reached the generator. ``state_dict`` is the position, and what the items of all steps follow from; nothing is replayed.

    Args:
        draw: Items; the last step of a pass may have fewer than the others.
        seed: Seed of the permutations; ``None`` keeps the order.
        rank: This process.
        world_size: Number of processes, each of which gets its share of a step's items.
    """

    def __init__(
        self, draw: Draw[Item, Batch], seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.draw = draw
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.step = self.first_step = 0

    @cached_property
    def digest(self) -> str:
        """Digest of the items and their order."""
        digest = hashlib.sha256()
        for item in self.draw.items:
            digest.update(repr(item).encode())
        return digest.hexdigest()

    @property
    def steps_per_pass(self) -> int:
        """Steps that use every item once."""
        return math.ceil(len(self.draw.items) / self.draw.batch_size)

    def __len__(self) -> int:
        return self.draw.num_passes * self.steps_per_pass

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, len(self)):
            self.step = step + 1
            yield self.draw.make(step, self.select(step)[self.rank :: self.world_size])

    def select(self, step: int) -> list[Item]:
        """Items of one step, of all ranks."""
        number, index = divmod(step, self.steps_per_pass)
        size = self.draw.batch_size
        if self.draw.in_parts:
            start = size * self._shuffled(number, self.steps_per_pass)[index]
            return list(self.draw.items[start : start + size])
        chosen = self._shuffled(number, len(self.draw.items))[index * size : (index + 1) * size]
        return [self.draw.items[i] for i in chosen]

    def _shuffled(self, number: int, count: int) -> Sequence[int]:
        """The places of one pass in their order."""
        order = range(count)
        if self.seed is None:
            return order
        keys = [derive_seed(self.seed, "order", number, place) for place in order]
        return sorted(order, key=keys.__getitem__)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.draw.batch_size,
            "num_items": len(self.draw.items),
            "items": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = self.first_step = state["step"]
