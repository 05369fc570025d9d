"""Attention over a prefix tree, as an attention implementation of transformers.

After :func:`use_tree_attention`, a model accepts ``subtree_end`` with shape [1, 1, 1, nodes] in place of a mask of
nodes x nodes. All other calls, including generation, use SDPA. On CUDA the mask is a FlexAttention block mask. On other
devices the row is split into short tiles of queries. Each tile attends to little more than the ancestors of its queries,
so the cost grows with the sum of the depths of the nodes, not with nodes^2.

Only this module of ``functional`` needs transformers.
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
"""Number of queries per call to SDPA; 64, 128 and 256 were equally fast (SmolLM2-135M, prompt 512, 8 x 96)."""


class Tiles(NamedTuple):
    """A row of queries split into tiles, with the keys of each tile.

    Args:
        rows: Number of queries in each tile.
        keys: Indices of the keys of all tiles, concatenated.
        key_counts: Number of keys of each tile.
        masks: Additive mask of each tile, [rows, keys].
    """

    rows: list[int]
    keys: Int[Tensor, " gathered"]
    key_counts: list[int]
    masks: list[Float[Tensor, "rows keys"]]


def ancestor_mask(subtree_end: Int[Tensor, " nodes"]) -> Bool[Tensor, "nodes nodes"]:
    """Return a mask that is true if the query (row) may attend to the key (column): the query itself or an ancestor."""
    node = torch.arange(len(subtree_end), device=subtree_end.device)
    return (node <= node[:, None]) & (node[:, None] < subtree_end)


def use_tree_attention(model: PreTrainedModel) -> bool:
    """Enable attention over prefix trees without a dense mask in ``model``; other calls are not affected.

    Returns:
        Whether the model supports it. A model is left unchanged if its attention does not use transformers'
        ``AttentionInterface``, has softcapped scores or has sinks. It then gets a dense mask, which is slower and gives the
        same numbers.
    """
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    if not model._supports_attention_backend or softcap is not None or sinks:
        return False
    model.set_attn_implementation(TREE_ATTENTION)
    return True


def has_tree_attention(model: PreTrainedModel) -> bool:
    """Return whether :func:`use_tree_attention` is enabled."""
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
    """Compute attention in a layer; transformers calls this function.

    Args:
        module: Attention layer.
        query: Queries after the position embedding.
        key: Keys after the position embedding.
        value: Values.
        attention_mask: ``subtree_end`` as [1, 1, 1, nodes] integers; with any other mask SDPA is used.
        scaling: Factor on the scores.
        dropout: Attention dropout.
        kwargs: Other arguments of the layer.

    Raises:
        ValueError: If the layer needs a feature that SDPA does not have.
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
            raise ValueError(
                f"tree attention does not support {name!r}; load this model with its default attention"
            )
    tiles = _prepared(attention_mask, query.dtype, lambda: make_tiles(subtree_end, query.dtype))
    return _tiled_attention(query, key, value, tiles, scaling, dropout), None


def make_tiles(subtree_end: Int[Tensor, " nodes"], dtype: torch.dtype, tile: int = TILE) -> Tiles:
    """Split a row at branch points into tiles of at most ``tile`` queries that share most of their keys."""
    ends = subtree_end.tolist()
    branches = [
        0,
        *(node + 1 for node, end in enumerate(ends) if end == node + 1),
    ]  # the node after each leaf
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
    """Build the FlexAttention mask block by block, without a mask of nodes x nodes.

    For a block of keys k and a block of queries q, some pairs may be visible if the first k is not after the last q and some
    subtree reaches the first q. All pairs are visible if the last k is not after the first q and every subtree reaches the
    last q.
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
    """Return the number of key blocks of each query block, and block indices with these key blocks first."""
    counts = blocks.sum(dim=1, dtype=torch.int32)
    places = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).int()
    return counts[None, None], places[None, None]


def _tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, scaling: float | None, dropout: float
) -> Tensor:
    """Compute the attention of each tile to its keys, with one gather for all tiles, so that backward scatters once.

    The tensors are split along dimension 1 of [1, nodes, heads, width], the memory layout of the layers.
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
    """Cache data derived from a mask, so that all layers share it; the entry is freed with the mask."""
    prepared = _PREPARED.setdefault(mask, {})
    if kind not in prepared:
        prepared[kind] = prepare()
    return prepared[kind]


AttentionInterface.register(TREE_ATTENTION, tree_attention_forward)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
