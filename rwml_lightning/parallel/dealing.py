"""Distribution of a step's micro-batches over ranks: a pure function of the step, so all ranks compute the same one."""

from __future__ import annotations

from collections.abc import Sequence

from rwml_lightning.functional import MicroBatch, micro_batches, padding_micro_batch
from rwml_lightning.functional.prefix_tree import TokenIds

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


def plan_micro_batches(
    sequences: Sequence[TokenIds], trained_from: Sequence[int], max_tokens: int, num_ranks: int
) -> list[list[MicroBatch]]:
    """Cut a step's sequences into micro-batches and deal them to ranks.

    Micro-batches are smaller than ``max_tokens`` if that balances the work better: with a single micro-batch, all other ranks
    would be idle. A rank with fewer micro-batches gets empty ones, so that all ranks enter every collective equally often.

    Args:
        sequences: Token ids of the whole step, prompt and completion.
        trained_from: First trained token of each sequence.
        max_tokens: Largest number of tokens in a micro-batch.
        num_ranks: Number of ranks.

    Returns:
        Micro-batches of each rank, the same number for all ranks.
    """
    if not sequences:
        return [[] for _ in range(num_ranks)]
    best: tuple[int, list[list[MicroBatch]]] | None = None
    for budget in _budgets(sequences, trained_from, max_tokens, num_ranks):
        micros = micro_batches(sequences, trained_from, budget)
        costs = [micro.num_nodes + _TOKENS_OF_A_PASS for micro in micros]
        hands = deal(costs, num_ranks)
        slowest = max(sum(costs[i] for i in hand) for hand in hands)
        if best is None or slowest < best[0]:
            best = slowest, [[micros[i] for i in hand] for hand in hands]
    assert best is not None
    most = max(len(hand) for hand in best[1])
    return [hand + [padding_micro_batch()] * (most - len(hand)) for hand in best[1]]


def _budgets(
    sequences: Sequence[TokenIds], trained_from: Sequence[int], max_tokens: int, num_ranks: int
) -> list[int]:
    if num_ranks == 1:
        return [max_tokens]
    total = sum(micro.num_nodes for micro in micro_batches(sequences, trained_from, max_tokens))
    finer = (-(-total * 11 // (10 * parts * num_ranks)) for parts in (1, 2))
    return [max_tokens, *(budget for budget in finer if budget < max_tokens)]
