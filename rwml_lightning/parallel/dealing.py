"""The micro-batches of a step, dealt to ranks: a pure function of the step, so every rank computes the same."""

from __future__ import annotations

from collections.abc import Sequence

from rwml_lightning.functional import MicroBatch, micro_batches, padding_micro_batch
from rwml_lightning.functional.prefix_tree import TokenIds

# A pass of few tokens costs about as much as one of this many, in kernel launches and, under FSDP, in gathering weights.
_TOKENS_OF_A_PASS = 64


def deal(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that the largest sum of costs is small and no rank has more than its even number of items.

    The costliest item goes first, each to the rank with the least so far.

    Returns:
        Places of each rank's items, ascending.
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

    Sequences are cut finer than ``max_tokens`` where that spreads the work better: a step of one micro-batch would leave all
    other ranks idle. Ranks with fewer micro-batches get empty ones, so that all enter every collective equally often.

    Args:
        sequences: Token ids of the whole step, prompt and completion.
        trained_from: First trained token of each sequence.
        max_tokens: Largest number of tokens in a micro-batch.
        num_ranks: Number of ranks.

    Returns:
        Micro-batches of each rank; equally many.
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
