"""Values of rank 0 that all ranks need before a process group exists, such as the path of the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from rwml_lightning.parallel.ranks import Failure, RankError

_WAIT = timedelta(minutes=10)


def agree(name: str, make: Callable[[], str]) -> str:
    """Call ``make`` on rank 0 only and return its result on every rank, before a process group exists.

    With torchrun, the value is passed through torchrun's store. If Lightning starts the other processes, they inherit it as
    an environment variable.

    Args:
        name: Name of the value. A name is used once per run.
        make: Function that makes the value.

    Raises:
        RankError: ``make`` failed on rank 0.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["WORLD_SIZE"] != "1":
        return _agree_by_store(name, make)
    variable = f"RWML_{name.upper()}"
    if os.environ.get("LOCAL_RANK", "0") != "0" and variable in os.environ:
        return os.environ[variable]
    os.environ[variable] = value = make()
    return value


def _agree_by_store(name: str, make: Callable[[], str]) -> str:
    store, rank, _ = next(dist.rendezvous("env://", timeout=_WAIT))
    key = f"rwml/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
    if rank != 0:
        value, failure = json.loads(store.get(key))
        if failure is not None:
            raise RankError(Failure(0, failure))
        return value
    try:
        value = make()
    except Exception as error:
        store.set(key, json.dumps([None, f"{type(error).__name__}: {error}"]))
        raise
    store.set(key, json.dumps([value, None]))
    return value
