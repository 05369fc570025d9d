"""Exchange of values, failures and gradients between the processes of a run.

The functions are collective unless stated otherwise: all ranks call them, in the same order. In a single process they
exchange nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rwml_lightning.interrupts import Interrupted, interruptible

T = TypeVar("T")
B = TypeVar("B")

# A rank waits at most this long for the rollouts of another rank. The end of a process is noticed at once: its connection closes.
_LONGEST_WAIT = timedelta(hours=12)
_BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Failure:
    """An exception on another rank.

    Args:
        rank: Rank that raised the exception.
        text: Type and message of the exception.
        signal: Number of the signal that interrupted the rank, if one did.
    """

    rank: int
    text: str
    signal: int | None = None


class RankError(RuntimeError):
    """Another rank failed. The message contains the type and message of its exception."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"rank {failure.rank} failed: {failure.text}")
        self.failure = failure


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_group(dist.group.WORLD))
    return values


def broadcast(value: T) -> T:
    """Return the value of rank 0."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group(dist.group.WORLD))
    return values[0]


def together(make: Callable[[], T]) -> list[T]:
    """Call ``make`` on every rank and return the results of all ranks. A signal to any rank interrupts the call on all.

    Raises:
        RankError: ``make`` failed on another rank. A rank where it failed raises its own exception.
        Interrupted: A rank has received a signal.
    """
    try:
        with interruptible():
            value = make()
    except (Exception, Interrupted) as error:
        number = error.number if isinstance(error, Interrupted) else None
        gather(Failure(rank(), f"{type(error).__name__}: {error}", number))
        raise
    results = gather(value)
    for result in results:
        if isinstance(result, Failure):
            raise RankError(result) if result.signal is None else Interrupted(result.signal)
    return results


def first_failure(error: BaseException) -> str:
    """Report that this rank fails, and return the report of the rank that failed first, in one line.

    The other ranks fail after it with a closed connection, whose message does not name the cause. This function is not
    collective.
    """
    known = isinstance(error, RankError | Interrupted)  # the same on all ranks
    text = str(error) if known else f"{type(error).__name__}: {error}".splitlines()[0]
    if world_size() == 1:
        return text
    own = text if known or rank() == 0 else f"rank {rank()} failed: {text}"
    try:
        return dist.distributed_c10d._get_default_store().compare_set("rwml/failure", "", own).decode()
    except dist.DistError:  # rank 0, which keeps the store, has ended
        return own


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's share of a step's items: consecutive items; the shares of two ranks differ by at most one item."""
    size, own = world_size(), rank()
    return items[len(items) * own // size : len(items) * (own + 1) // size]


def roll_out(items: Sequence[T], make: Callable[[Sequence[T]], B]) -> list[B]:
    """Call ``make`` on each rank's share of a step's items, and return all results on every rank, in the order of the items.

    A rank without items does not call ``make``. If the step has no items, every rank calls it with none.
    """
    own = share(items)
    results = together(lambda: make(own) if own else None)
    made = [result for result in results if result is not None]
    return made or [make(items)]


def roll_out_own(items: Sequence[T], make: Callable[[Sequence[T]], B]) -> B:
    """Call ``make`` on each rank's share of a step's items, and return this rank's result alone."""
    made: list[B] = []
    together(lambda: made.append(make(share(items))))
    return made[0]


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the ranks, with a few large all-reduces.

    A gradient that is absent on all ranks stays absent. FSDP has already summed the gradients of sharded parameters.
    """
    if world_size() == 1:
        return
    own = [p for p in parameters if not isinstance(p, DTensor)]
    present = gather([p.grad is not None for p in own])
    some = [p for p, *had in zip(own, *present, strict=True) if any(had)]
    for bucket in _buckets(some):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts: Sequence[Tensor] = flat.split([p.numel() for p in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters of one dtype, of at most about ``_BUCKET_BYTES``."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in sorted(parameters, key=lambda p: str(p.dtype)):
        if bucket and (size >= _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket


@cache
def _group(world: Any) -> Any:
    """Make a gloo group beside the group of the devices: it needs no GPU and has a longer timeout."""
    return dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
