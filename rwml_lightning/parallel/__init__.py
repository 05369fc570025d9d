"""Processes of a run: gathering a step on all ranks, dealing its micro-batches, summing gradients, deciding together.

No other package calls torch.distributed.
"""

from rwml_lightning.parallel.dealing import deal, own_micro_batches
from rwml_lightning.parallel.launch import agree, own_card, without_launcher
from rwml_lightning.parallel.ranks import (
    RankError,
    broadcast,
    first_failure,
    gather,
    rank,
    roll_out,
    roll_out_own,
    share,
    sum_gradients,
    together,
    world_size,
)
from rwml_lightning.parallel.sharding import Replicated, Sharded, connect, find_strategy, shard

__all__ = [
    "RankError",
    "Replicated",
    "Sharded",
    "agree",
    "broadcast",
    "connect",
    "deal",
    "find_strategy",
    "first_failure",
    "gather",
    "own_card",
    "own_micro_batches",
    "rank",
    "roll_out",
    "roll_out_own",
    "shard",
    "share",
    "sum_gradients",
    "together",
    "without_launcher",
    "world_size",
]
