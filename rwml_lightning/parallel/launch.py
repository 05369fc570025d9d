"""Values of rank 0 that all ranks need before a process group exists, such as the path of the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch.distributed as dist

from rwml_lightning.parallel.ranks import Failure, RankError

_WAIT = timedelta(hours=12)  # rank 0 may collect transitions for so long
_LAUNCHER = frozenset(
    [
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "RANK",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "WORLD_SIZE",
    ]
)


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


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of torchrun and Lightning's launcher, for processes of another program.

    With them, an engine that starts workers of its own would look for them in the store of this run, and wait forever.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER and not name.startswith("TORCHELASTIC_")
    }


def own_card(environment: Mapping[str, str], num_cards: int) -> str | None:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` that shows an engine only the card of this rank.

    Args:
        environment: Environment of this process.
        num_cards: Number of cards that this process sees.

    Returns:
        ``None`` if the run has a single process on this machine, or fewer cards than processes.
    """
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else [str(card) for card in range(num_cards)]
    return cards[local_rank] if "LOCAL_RANK" in environment and local_rank < len(cards) else None


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
