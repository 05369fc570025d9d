"""Trees and micro-batches against their definitions, on random forests."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, flex_attention

from rwml_lightning.functional import build_tree, micro_batches
from rwml_lightning.functional.attention import ancestor_mask, make_tiles, tree_block_mask

# Few tokens and short sequences: shared prefixes, duplicates, prefixes of others and lone tokens are then common.
forests = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


@st.composite
def steps(draw):
    """Sequences with at least one trained token each."""
    sequences = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=7), min_size=1, max_size=8))
    return sequences, [draw(st.integers(1, len(sequence) - 1)) for sequence in sequences]


def prefixes(sequences):
    return {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}


def random_forest(num_sequences=40, seed=0):
    """A few prompts, completions that part early or late, all longer than a tile or a block in places."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 50, size).tolist() for size in (300, 140, 3)]
    return [
        prompts[i % 3] + rng.integers(0, 2, 4).tolist() + rng.integers(0, 50, rng.integers(1, 90)).tolist()
        for i in range(num_sequences)
    ]


@given(forests)
def test_every_distinct_prefix_stands_once(sequences):
    tree = build_tree(sequences)
    assert tree.num_nodes == len(prefixes(sequences))
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == sequence
        assert tree.depths[path].tolist() == list(range(len(sequence)))


@given(forests)
def test_a_node_sees_itself_and_its_ancestors(sequences):
    tree = build_tree(sequences)
    prefix_of = {}
    for sequence, path in zip(sequences, tree.paths, strict=True):
        prefix_of.update({int(node): sequence[: depth + 1] for depth, node in enumerate(path)})
    mask = ancestor_mask(torch.from_numpy(tree.subtree_end))
    for query, key in np.ndindex(*mask.shape):
        assert bool(mask[query, key]) == (prefix_of[query][: len(prefix_of[key])] == prefix_of[key])


def test_layout_by_hand():
    tree = build_tree([[1, 2, 3], [1, 2, 4], [1, 5], [1, 2, 3], [6]])
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert tree.depths.tolist() == [0, 1, 2, 2, 1, 0]
    assert tree.subtree_end.tolist() == [5, 4, 3, 4, 5, 6]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 3], [0, 4], [0, 1, 2], [5]]


@pytest.mark.heavy
@given(forests, st.integers(1, 5))
def test_tiles_cover_the_mask(sequences, tile):
    check_tiles(torch.from_numpy(build_tree(sequences).subtree_end), tile)


def test_tiles_cover_the_mask_of_a_large_forest():
    subtree_end = torch.from_numpy(build_tree(random_forest()).subtree_end)
    check_tiles(subtree_end, 64)
    tiles = make_tiles(subtree_end, torch.float32, 64)
    pairs = sum(mask.numel() for mask in tiles.masks)
    assert pairs < 2 * int(ancestor_mask(subtree_end).sum())  # little is computed in vain


def check_tiles(subtree_end, tile):
    tiles = make_tiles(subtree_end, torch.float32, tile)
    rows = torch.arange(len(subtree_end)).split(tiles.rows)
    covered = torch.zeros(len(subtree_end), len(subtree_end), dtype=torch.bool)
    for queries, keys, mask in zip(rows, tiles.keys.split(tiles.key_counts), tiles.masks, strict=True):
        assert 1 <= len(queries) <= tile
        assert set(mask.unique().tolist()) <= {0.0, -torch.inf}
        covered[queries[:, None], keys] = mask == 0
    assert torch.equal(covered, ancestor_mask(subtree_end))


@pytest.mark.parametrize("block", [16, 128])
def test_block_mask_is_the_dense_mask(block):
    subtree_end = torch.from_numpy(build_tree(random_forest()).subtree_end)
    nodes = len(subtree_end)
    dense = ancestor_mask(subtree_end)
    block_mask = tree_block_mask(subtree_end, block)
    assert torch.equal(create_mask(block_mask.mask_mod, None, None, nodes, nodes, device="cpu")[0, 0], dense)

    padded = torch.zeros(*2 * [nodes + -nodes % block], dtype=torch.bool)
    padded[:nodes, :nodes] = dense
    blocks = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block)).transpose(1, 2).flatten(2)
    partial = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert torch.equal(full, blocks.all(dim=2))
    assert not (blocks.any(dim=2) & ~(partial | full)).any()
    assert not (partial & full).any()
    assert int(partial.sum()) < 2 * int((blocks.any(dim=2) & ~full).sum())


def listed_blocks(counts, places):
    listed = torch.zeros(places.shape[-2:], dtype=torch.bool)
    for row, (count, order) in enumerate(zip(counts[0, 0], places[0, 0], strict=True)):
        listed[row, order[:count].long()] = True
    return listed


@pytest.mark.heavy
def test_flex_attention_takes_the_block_mask():
    """Eager FlexAttention against SDPA with the dense mask, float32 within 1e-5."""
    subtree_end = torch.from_numpy(build_tree([[1, 2, 3, 4], [1, 2, 5], [6, 7], [1, 2, 3, 8, 9]]).subtree_end)
    query, key, value = torch.randn(3, 1, 2, len(subtree_end), 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, ancestor_mask(subtree_end))
    actual = flex_attention(query, key, value, block_mask=tree_block_mask(subtree_end))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.heavy
@given(steps(), st.integers(1, 30))
def test_micro_batches_keep_to_the_budget_and_hold_everything_once(step, max_tokens):
    sequences, trained_from = step
    batches = micro_batches(sequences, trained_from, max_tokens)
    assert sorted(b for micro in batches for b in micro.sequences) == list(range(len(sequences)))
    for micro in batches:
        inputs = [sequences[b][:-1] for b in micro.sequences]
        assert micro.num_nodes == len(prefixes(inputs))
        assert micro.num_nodes <= max_tokens or len(micro.sequences) == 1
        expected = [(b, t) for b in micro.sequences for t in range(trained_from[b], len(sequences[b]))]
        assert list(zip(micro.sequence_index.tolist(), micro.token_index.tolist(), strict=True)) == expected
        assert len(micro.edge_nodes) == len({tuple(sequences[b][: t + 1]) for b, t in expected})
        nodes, targets = micro.edge_nodes[micro.edge_index], micro.edge_targets[micro.edge_index]
        assert targets.tolist() == [sequences[b][t] for b, t in expected]
        assert micro.input_ids[nodes].tolist() == [sequences[b][t - 1] for b, t in expected]
        assert micro.position_ids[nodes].tolist() == [t - 1 for _, t in expected]


@pytest.mark.heavy
@given(steps(), st.integers(1, 30))
def test_cuts_cost_the_fewest_tokens_and_then_the_fewest_micro_batches(step, max_tokens):
    sequences, trained_from = step
    batches = micro_batches(sequences, trained_from, max_tokens)
    inputs = sorted(sequence[:-1] for sequence in sequences)
    places = range(1, len(inputs))
    costs = []
    for cuts in (cuts for number in range(len(inputs)) for cuts in combinations(places, number)):
        runs = [inputs[start:end] for start, end in pairwise([0, *cuts, len(inputs)])]
        sizes = [len(prefixes(run)) for run in runs]
        if all(size <= max_tokens or len(run) == 1 for size, run in zip(sizes, runs, strict=True)):
            costs.append((sum(sizes), len(runs)))
    assert (sum(micro.num_nodes for micro in batches), len(batches)) == min(costs)


def test_a_group_shares_its_prompt_and_equal_completions_merge():
    prompt = list(range(10))
    sequences = [[*prompt, 50, 51], [*prompt, 50, 52], [*prompt, 50, 51]]
    (micro,) = micro_batches(sequences, [10] * 3, max_tokens=100)
    assert micro.num_nodes == 11  # the prompt and 50; nothing is read after 51 and 52
    assert len(micro.edge_targets) == 3  # 50 after the prompt, 51 and 52 after it
    assert len(micro.token_index) == 6


def test_cuts_fall_between_groups():
    """Both groups fit together in no budget of 30; a greedy fill would cut the second one in two."""
    group_a = [[1] * 8 + [2, member, member] for member in range(4)]
    group_b = [[3] * 8 + [2, member, member] for member in range(4)]
    batches = micro_batches([*group_a, *group_b], [8] * 8, max_tokens=18)
    assert [micro.sequences for micro in batches] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [micro.num_nodes for micro in batches] == [13, 13]


def test_a_sequence_over_the_budget_stands_alone():
    batches = micro_batches([[1] * 20, [1, 2], [1, 3]], [1, 1, 1], max_tokens=5)
    assert [micro.sequences for micro in batches] == [(1, 2), (0,)]


def test_micro_batches_are_deterministic_and_take_arrays():
    sequences = random_forest()
    first = micro_batches(sequences, [3] * 40, 500)
    second = micro_batches([np.array(sequence) for sequence in sequences], [3] * 40, 500)
    assert [micro.sequences for micro in first] == [micro.sequences for micro in second]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))


def test_to_moves_every_tensor():
    (micro,) = micro_batches([[1, 2, 3]], [1], 10)
    moved = micro.to("meta")
    assert moved.sequences == micro.sequences
    assert {moved.input_ids.device.type, moved.edge_index.device.type, moved.token_index.device.type} == {
        "meta"
    }


@pytest.mark.parametrize(
    ("sequences", "trained_from", "max_tokens", "match"),
    [
        ([], [], 10, "at least one sequence"),
        ([[1, 2]], [1, 1], 10, "trained_from has 2 entries for 1 sequences"),
        ([[1, 2], [1]], [1, 1], 10, "sequence 1 has 1 tokens"),
        (
            [[1, 2], [1, 2, 3]],
            [1, 3],
            10,
            "sequence 1 has 3 tokens, so trained_from must lie in 1..2, not be 3",
        ),
        ([[1, 2]], [0], 10, "sequence 0 .* must lie in 1..1, not be 0"),
        ([[1, 2]], [1], 0, "max_tokens must be at least 1, not 0"),
        ([[[1, 2], [3, 4]]], [1], 10, "sequence 0 must be a non-empty list of token ids"),
    ],
)
def test_bad_arguments(sequences, trained_from, max_tokens, match):
    with pytest.raises(ValueError, match=match):
        micro_batches(sequences, trained_from, max_tokens)


@pytest.mark.parametrize(
    ("sequences", "match"), [([], "at least one"), ([[1], []], "sequence 1 must be a non-empty")]
)
def test_trees_need_tokens(sequences, match):
    with pytest.raises(ValueError, match=match):
        build_tree(sequences)
