"""Attention over a prefix tree, as an attention implementation of transformers.

A model that was given :func:`use_tree_attention` takes ``subtree_end`` itself, shaped [1, 1, 1, nodes], where others
take a mask of nodes x nodes; every other call falls through to SDPA, generation included. On CUDA the rule is a
FlexAttention block mask. Elsewhere the row is cut into short runs of queries, each of which attends to its own
ancestors and little else, so the work grows with the sum of the nodes' depths, not with nodes^2.

This is the one module of ``functional`` that needs transformers.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE_ATTENTION = "prefix_tree"
T = TypeVar("T")

TILE = 128
"""Queries in one call to SDPA: 64, 128 and 256 were equally fast (SmolLM2-135M, prompt 512, 8 x 96)."""


class Tiles(NamedTuple):
    """A row of queries in runs, and the keys that each run needs.

    Args:
        rows: Number of queries in each run.
        keys: Keys of all runs, one run after the other.
        key_counts: Number of keys of each run.
        masks: Additive mask of each run, [rows, keys].
    """

    rows: list[int]
    keys: Int[Tensor, " gathered"]
    key_counts: list[int]
    masks: list[Float[Tensor, "rows keys"]]


def ancestor_mask(subtree_end: Int[Tensor, " nodes"]) -> Bool[Tensor, "nodes nodes"]:
    """Whether query (row) sees key (column): the key is the query itself or an ancestor of it."""
    node = torch.arange(len(subtree_end), device=subtree_end.device)
    return (node <= node[:, None]) & (node[:, None] < subtree_end)


def use_tree_attention(model: PreTrainedModel) -> bool:
    """Let ``model`` attend over prefix trees without a dense mask; stays on, and changes nothing for other calls.

    Returns:
        Whether it could. Attention outside of transformers' ``AttentionInterface``, with softcapped scores or with
        sinks stays as it was: such a model gets a dense mask, which is slower and gives the same numbers.
    """
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    if not model._supports_attention_backend or softcap is not None or sinks:
        return False
    model.set_attn_implementation(TREE_ATTENTION)
    return True


def has_tree_attention(model: PreTrainedModel) -> bool:
    """Whether :func:`use_tree_attention` is on."""
    return model.config._attn_implementation == TREE_ATTENTION


def tree_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "1 heads nodes width"],
    key: Float[Tensor, "1 kv_heads nodes width"],
    value: Float[Tensor, "1 kv_heads nodes width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 nodes heads width"], None]:
    """The function that transformers calls in each layer.

    Args:
        module: Attention layer.
        query: After the position embedding.
        key: The same.
        value: Values.
        attention_mask: ``subtree_end`` as [1, 1, 1, nodes] integers; anything else goes to SDPA.
        scaling: Factor on the scores.
        dropout: Attention dropout.
        kwargs: What else the layer passes on.

    Raises:
        ValueError: If the layer asks for something that SDPA cannot do.
    """
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    subtree_end = attention_mask.view(-1)
    if query.is_cuda:
        block_mask = _prepared(attention_mask, "block_mask", lambda: tree_block_mask(subtree_end))
        output, _ = flex_attention_forward(
            module, query, key, value, block_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, None
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"tree attention has no {name!r}; load this model with its own attention")
    tiles = _prepared(attention_mask, query.dtype, lambda: make_tiles(subtree_end, query.dtype))
    return _tiled_attention(query, key, value, tiles, scaling, dropout), None


def make_tiles(subtree_end: Int[Tensor, " nodes"], dtype: torch.dtype, tile: int = TILE) -> Tiles:
    """Cut a row, where sequences branch off, into runs of at most ``tile`` queries that share most of their keys."""
    ends = subtree_end.tolist()
    branches = [0, *(node + 1 for node, end in enumerate(ends) if end == node + 1)]  # after each leaf
    bounds, tree_end = [0], 0
    for start, stop in pairwise(branches):
        new_tree = start == tree_end
        if start > bounds[-1] and (new_tree or stop - bounds[-1] > tile):
            bounds.append(start)
        if new_tree:
            tree_end = ends[start]
        bounds.extend(range(bounds[-1] + tile, stop, tile))
    bounds.append(len(ends))

    node = torch.arange(len(ends), device=subtree_end.device)
    keys, masks = [], []
    for start, stop in pairwise(bounds):
        seen = torch.nonzero((node < stop) & (subtree_end > start)).squeeze(1)
        queries = node[start:stop, None]
        visible = (seen <= queries) & (queries < subtree_end[seen])
        keys.append(seen)
        masks.append(
            torch.zeros(visible.shape, dtype=dtype, device=node.device).masked_fill_(~visible, -torch.inf)
        )
    rows = [stop - start for start, stop in pairwise(bounds)]
    return Tiles(rows, torch.cat(keys), [len(seen) for seen in keys], masks)


def tree_block_mask(subtree_end: Int[Tensor, " nodes"], block: int = 128) -> BlockMask:
    """FlexAttention's form of the mask, found block by block without a mask of nodes x nodes.

    Of keys k and queries q in two blocks, some pair may be visible if the first k is not after the last q and some
    subtree reaches the first q; all are if the last k is not after the first q and every subtree reaches the last q.
    """
    nodes = len(subtree_end)
    padded = torch.nn.functional.pad(subtree_end, (0, -nodes % block)).view(-1, block)
    first = torch.arange(len(padded), device=subtree_end.device) * block
    last = first + block - 1
    some = (first <= last[:, None]) & (padded.amax(dim=1) > first[:, None])
    every = (last <= first[:, None]) & (padded.amin(dim=1) > last[:, None])

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end[key])

    return BlockMask.from_kv_blocks(
        *_block_lists(some & ~every),
        *_block_lists(every),
        BLOCK_SIZE=block,
        mask_mod=visible,
        seq_lengths=(nodes, nodes),
    )


def _block_lists(blocks: Bool[Tensor, "queries keys"]) -> tuple[Tensor, Tensor]:
    """Number of key blocks of each query block, and their places first."""
    counts = blocks.sum(dim=1, dtype=torch.int32)
    places = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).int()
    return counts[None, None], places[None, None]


def _tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, scaling: float | None, dropout: float
) -> Tensor:
    """Attention of each tile to its keys; one gather for all, so that backward scatters once.

    Everything is cut along dimension 1 of [1, nodes, heads, width], which is how the layers hold it in memory.
    """
    queries = query.transpose(1, 2).split(tiles.rows, dim=1)
    keys, values = (
        states.transpose(1, 2).index_select(1, tiles.keys).split(tiles.key_counts, dim=1)
        for states in (key, value)
    )
    outputs = [
        nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=True,
        ).transpose(1, 2)
        for q, k, v, mask in zip(queries, keys, values, tiles.masks, strict=True)
    ]
    return torch.cat(outputs, dim=1)


_PREPARED: MutableMapping[Tensor, dict[object, Any]] = WeakTensorKeyDictionary()


def _prepared(mask: Tensor, kind: object, prepare: Callable[[], T]) -> T:
    """What all layers need from one mask, computed once and dropped with it."""
    prepared = _PREPARED.setdefault(mask, {})
    if kind not in prepared:
        prepared[kind] = prepare()
    return prepared[kind]


AttentionInterface.register(TREE_ATTENTION, tree_attention_forward)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
