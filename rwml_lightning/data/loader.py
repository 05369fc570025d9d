"""The loader of every stage: it makes each batch from its position, when the batch is needed."""

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
    """Items of a stage and the function that makes batches of them.

    Args:
        items: Transitions, games or labels.
        batch_size: Number of items per step, over all ranks.
        make: Function that makes a batch from (step, items of one rank).
        num_passes: Number of times that every item is used.
        in_parts: Whether consecutive items stay together in a step, as the turns of an episode do.
    """

    items: Sequence[Item]
    batch_size: int
    make: Callable[[int, Sequence[Item]], Batch]
    num_passes: int = 1
    in_parts: bool = False


class StepLoader(Generic[Item, Batch]):
    """Makes batches by position: the items of step n depend only on the seed and n.

    Each pass is a new permutation, and all passes together are one Lightning epoch, so that a position is one number. The
    length is known, so Lightning does not prefetch: a batch is made after the generator has received the weights of the
    previous step. ``state_dict`` holds the position and everything that determines the items of a step. A resumed run
    replays no steps.

    Args:
        draw: Items and their batch function. The last step of a pass may have fewer items than the others.
        seed: Seed of the permutations; ``None`` keeps the order.
        rank: Rank of this process.
        world_size: Number of processes. Each process gets its share of a step's items.
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
        """Number of steps that use every item once."""
        return math.ceil(len(self.draw.items) / self.draw.batch_size)

    def __len__(self) -> int:
        return self.draw.num_passes * self.steps_per_pass

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, len(self)):
            self.step = step + 1
            yield self.draw.make(step, self.select(step)[self.rank :: self.world_size])

    def select(self, step: int) -> list[Item]:
        """Return the items of one step, for all ranks."""
        number, index = divmod(step, self.steps_per_pass)
        size = self.draw.batch_size
        if self.draw.in_parts:
            start = size * self._shuffled(number, self.steps_per_pass)[index]
            return list(self.draw.items[start : start + size])
        chosen = self._shuffled(number, len(self.draw.items))[index * size : (index + 1) * size]
        return [self.draw.items[i] for i in chosen]

    def _shuffled(self, number: int, count: int) -> Sequence[int]:
        """Return the positions of one pass in their shuffled order."""
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
