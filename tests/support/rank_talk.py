"""What ranks say to one another, as one of two processes: ``python -m support.rank_talk OUT``; each writes what it saw."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwml_lightning import parallel
from rwml_lightning.interrupts import Interrupted, deferred, handled


def failing(rank: int) -> Any:
    """Give a function that fails on one rank."""

    def make() -> int:
        if parallel.rank() == rank:
            raise ValueError(f"no luck on {rank}")
        return 7

    return make


def interrupting(rank: int) -> Any:
    """Give a function that sends a signal to one rank."""

    def make() -> None:
        if parallel.rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    return make


def caught(make: Any) -> str:
    """The exception of a call, as text."""
    try:
        return f"returned {make()}"
    except (Exception, Interrupted) as error:
        return f"{type(error).__name__}: {error}"


def reported(error: BaseException) -> str:
    """What the run store would hold if both ranks fail with an exception, rank 1 first."""
    first = parallel.first_failure(error) if parallel.rank() == 1 else None
    parallel.gather(None)
    return first or parallel.first_failure(error)


def main(out: str) -> None:
    agreed = parallel.agree("folder", lambda: f"made by {os.environ['RANK']}")
    torch.distributed.init_process_group("gloo")
    own = parallel.rank()
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.tensor([1.0, 10.0]) * (own + 1)
    if own == 0:
        b.grad = torch.tensor([2.0, 3.0])
    parallel.sum_gradients([a, b, c])
    with handled(), deferred():
        interrupted = caught(lambda: parallel.together(interrupting(1)))
    seen = {
        "agreed": agreed,
        "world_size": parallel.world_size(),
        "gathered": parallel.gather(f"rank {own}"),
        "broadcast": parallel.broadcast(own + 5),
        "shares": [list(parallel.share(range(count))) for count in (0, 1, 2, 5)],
        "rolled out": [parallel.roll_out(list(range(count)), list) for count in (0, 1, 3)],
        "rolled out own": [parallel.roll_out_own(list(range(count)), list) for count in (0, 1, 3)],
        "interrupted": interrupted,
        "reported": reported(Interrupted(signal.SIGTERM)),
        "together": parallel.together(lambda: own * 2),
        "failed": [caught(lambda r=r: parallel.together(failing(r))) for r in (0, 1)],
        "after": parallel.gather(own),  # both are still in step
        "gradients": [None if p.grad is None else p.grad.tolist() for p in (a, b, c)],
    }
    Path(f"{out}.{own}").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
