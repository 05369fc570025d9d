"""Micro-batches dealt to ranks: each once, equally many, and work spread evenly."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.functional import MicroBatch, micro_batches, padding_micro_batch
from rwml_lightning.functional.prefix_tree import Packer
from rwml_lightning.parallel import deal, own_micro_batches


def deal_all(
    texts: list[list[int]], starts: list[int], max_tokens: int, num_ranks: int
) -> list[list[MicroBatch]]:
    """The micro-batches of every rank."""
    return [own_micro_batches(texts, starts, max_tokens, num_ranks, rank) for rank in range(num_ranks)]


TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=8), min_size=1, max_size=12)


def test_the_costliest_goes_first_to_the_rank_with_least() -> None:
    assert deal([5, 9, 4, 8], 2) == [[1, 2], [0, 3]]  # 9 | 8, then 5 to the 8, then 4 to the 9
    assert deal([1, 1, 1, 9], 2) == [[2, 3], [0, 1]]  # no rank gets more than two: else 9 | 1 1 1
    assert deal([3], 3) == [[0], [], []]
    assert deal([], 2) == [[], []]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 5))
def test_every_item_is_dealt_once_and_no_rank_has_more_than_its_number(
    costs: list[int], num_ranks: int
) -> None:
    hands = deal(costs, num_ranks)
    assert sorted(place for hand in hands for place in hand) == list(range(len(costs)))
    assert max(map(len, hands)) == -(-len(costs) // num_ranks)


@pytest.mark.heavy
@given(TEXTS, st.integers(1, 30), st.integers(1, 4))
def test_a_plan_holds_every_sequence_once_in_equally_many_micro_batches(
    texts: list[list[int]], max_tokens: int, num_ranks: int
) -> None:
    hands = deal_all(texts, [1] * len(texts), max_tokens, num_ranks)
    assert len(hands) == num_ranks
    assert len({len(hand) for hand in hands}) == 1
    held = Counter(place for hand in hands for micro in hand for place in micro.sequences)
    assert held == Counter(range(len(texts)))
    longest = max(map(len, texts)) - 1
    assert all(micro.num_nodes <= max(max_tokens, longest) for hand in hands for micro in hand)


@pytest.mark.heavy
@given(TEXTS, st.integers(1, 30))
def test_a_part_counts_the_nodes_that_it_will_have(texts: list[list[int]], max_tokens: int) -> None:
    packer = Packer(texts, [1] * len(texts))
    for part in packer.split(max_tokens):
        assert packer.pack(part).num_nodes == part.num_nodes


def test_one_rank_gets_what_the_token_budget_gives() -> None:
    texts, trained_from = [[1, 2, 3], [1, 2, 4], [5, 6, 7, 8]], [1, 2, 1]
    (own,) = deal_all(texts, trained_from, 4, 1)
    assert [m.sequences for m in own] == [m.sequences for m in micro_batches(texts, trained_from, 4)]


def test_a_step_of_one_micro_batch_is_cut_finer_for_two_ranks() -> None:
    texts = [[k, *range(200)] for k in range(8)]
    assert len(micro_batches(texts, [1] * 8, 10_000)) == 1
    hands = deal_all(texts, [1] * 8, 10_000, 2)
    assert [sum(micro.num_nodes for micro in hand) for hand in hands] == [800, 800]


def test_a_step_without_samples_has_no_micro_batches() -> None:
    assert deal_all([], [], 8, 3) == [[], [], []]


def test_a_padding_micro_batch_goes_through_the_model_and_trains_nothing() -> None:
    padding = padding_micro_batch()
    assert (padding.num_nodes, len(padding.token_index), padding.sequences) == (1, 0, ())
    assert torch.equal(padding.subtree_end, torch.tensor([1]))
    one, none = deal_all([[1, 2]], [1], 8, 2)
    assert (len(one[0].token_index), len(none[0].token_index)) == (1, 0)
