"""The loader of every stage: it makes each batch from its position, when the batch is needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import chain
from typing import Any, Generic, TypeVar

from rwml_lightning import parallel
from rwml_lightning.data.ahead import Ahead
from rwml_lightning.seeds import derive_seed

Item = TypeVar("Item")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Draw(Generic[Item, Batch]):
    """Items of a stage and the function that makes batches of them.

    Args:
        items: Transitions, games or labels.
        batch_size: Number of items per step, over all ranks.
        make: Function that makes a batch from (step, items). Each rank calls it with its share of the step's items.
        num_passes: Number of times that every item is used.
        in_parts: Whether consecutive items stay together in a step, as the turns of an episode do.
        complete: Function from the batch of the whole step to the batch that is used.
        gathered: Whether every rank gets the batch of the whole step. Otherwise each rank keeps the batch of its share.
    """

    items: Sequence[Item]
    batch_size: int
    make: Callable[[int, Sequence[Item]], Batch]
    num_passes: int = 1
    in_parts: bool = False
    complete: Callable[[Batch], Batch] = lambda batch: batch
    gathered: bool = True


class StepLoader(Generic[Item, Batch]):
    """Makes batches by position: the items of step n depend only on the seed and n.

    Each pass is a new permutation, and all passes together are one Lightning epoch, so that a position is one number. The
    length is known, so Lightning does not prefetch: a batch is made after the generator has received the weights of the
    previous step, or during that step if ``ahead`` allows it. Each rank makes the batch of its share of a step's items, and
    every rank gets the batch of the whole step. ``state_dict`` holds the position and everything that determines the items of
    a step. A resumed run replays no steps.

    Args:
        draw: Items and their batch function. The last step of a pass may have fewer items than the others.
        seed: Seed of the permutations; ``None`` keeps the order.
        ahead: Function that tells, before a batch is handed out, whether the next one is made meanwhile. Its answer is the same
            on all ranks.
    """

    def __init__(
        self,
        draw: Draw[Item, Batch],
        seed: int | None = None,
        ahead: Callable[[], bool] = lambda: False,
    ) -> None:
        self.draw = draw
        self.seed = seed
        self.ahead = ahead
        self.step = self.first_step = 0
        self._next: Ahead[Batch | None] | None = None

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
            batch = self._make(step)
            self.step = step + 1  # not earlier: a run that is interrupted here must make this batch again
            if step + 1 < len(self) and self.ahead():
                own, make = parallel.share(self.select(step + 1)), partial(self.draw.make, step + 1)
                self._next = Ahead(partial(make, own) if own else lambda: None)
            yield batch

    def _make(self, step: int) -> Batch:
        items, make = self.select(step), partial(self.draw.make, step)
        if not self.draw.gathered:
            return parallel.roll_out_own(items, make)
        ahead, self._next = self._next, None
        take: Callable[[Any], Any] = make if ahead is None else lambda _: ahead.value()
        return self.draw.complete(merge(parallel.roll_out(items, take)))

    def settled(self) -> bool:
        """Wait until no rank makes a batch ahead. Returns ``False`` if a rank has received a signal instead."""
        return self._next is None or all(parallel.gather(self._next.settled()))

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


def merge(batches: Sequence[Batch]) -> Batch:
    """Join the batches of several ranks into that of the whole step.

    Tuples are joined in order, and a phase takes as long as the slowest rank's.

    Args:
        batches: Dataclasses of one type; at least one.

    Raises:
        ValueError: A field that all must share differs.
    """
    first: Any = batches[0]
    if len(batches) == 1:
        return first
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(first)):
        column: list[Any] = [getattr(batch, name) for batch in batches]
        if isinstance(column[0], tuple):
            values[name] = tuple(chain.from_iterable(column))
        elif name == "seconds":
            phases = dict.fromkeys(phase for seconds in column for phase in seconds)
            values[name] = {phase: max(seconds.get(phase, 0.0) for seconds in column) for phase in phases}
        elif any(value != column[0] for value in column):
            raise ValueError(f"ranks disagree on {name} of a {type(first).__name__}: {column}")
        else:
            values[name] = column[0]
    return type(first)(**values)
