"""Distribution of a step's micro-batches over ranks: a pure function of the step, so all ranks compute the same one."""

from __future__ import annotations

from collections.abc import Sequence

from rwml_lightning.functional import MicroBatch, padding_micro_batch
from rwml_lightning.functional.prefix_tree import Packer, Part, TokenIds

# Cost of a pass besides its tokens, in tokens: kernel launches and, with FSDP, the gathering of weights.
_TOKENS_OF_A_PASS = 64


def deal(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that the largest sum of costs is small and the numbers of items are as equal as possible.

    Items are dealt in descending order of cost, each to the rank with the smallest sum so far.

    Args:
        costs: Cost of each item.
        num_ranks: Number of ranks.

    Returns:
        Indices of each rank's items, ascending.
    """
    most = -(-len(costs) // num_ranks)
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    sums = [0] * num_ranks
    for place in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        taker = min((r for r in range(num_ranks) if len(hands[r]) < most), key=lambda r: (sums[r], r))
        hands[taker].append(place)
        sums[taker] += costs[place]
    return [sorted(hand) for hand in hands]


def own_micro_batches(
    sequences: Sequence[TokenIds], trained_from: Sequence[int], max_tokens: int, num_ranks: int, rank: int
) -> list[MicroBatch]:
    """Split a step's sequences into micro-batches, deal them to the ranks, and make those of one rank.

    Micro-batches are smaller than ``max_tokens`` if that balances the work better: with a single micro-batch, all other ranks
    would be idle. A rank with fewer micro-batches gets empty ones, so that all ranks enter every collective equally often.

    Args:
        sequences: Token ids of the whole step, prompt and completion.
        trained_from: First trained token of each sequence.
        max_tokens: Largest number of tokens in a micro-batch.
        num_ranks: Number of ranks.
        rank: Rank whose micro-batches are made. All ranks compute the same split and have equally many.
    """
    if not sequences:
        return []
    packer = Packer(sequences, trained_from)
    whole = packer.split(max_tokens)
    total = sum(part.num_nodes for part in whole)
    finer = [-(-total * 11 // (10 * parts * num_ranks)) for parts in (1, 2)] if num_ranks > 1 else []
    splits = [whole, *(packer.split(budget) for budget in finer if budget < max_tokens)]
    dealt = [(split, deal([_cost(part) for part in split], num_ranks)) for split in splits]
    split, hands = min(dealt, key=lambda one: max(sum(_cost(one[0][i]) for i in hand) for hand in one[1]))
    most = max(map(len, hands))
    own = [packer.pack(split[i]) for i in hands[rank]]
    return own + [padding_micro_batch()] * (most - len(own))


def _cost(part: Part) -> int:
    return part.num_nodes + _TOKENS_OF_A_PASS
