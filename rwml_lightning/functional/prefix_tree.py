"""Token sequences as a prefix tree, so that what sequences share is computed once.

Members of a group share their prompt, turns of an episode share their history, and some completions are the same word
for word. A causal model's hidden state at a token depends on the tokens before it alone, so every distinct prefix needs
one forward position, whatever the number of sequences that run through it.

Nodes stand in depth-first order, which sorting gives for free: each sorted sequence adds the part that its predecessor
does not have. In that order a node's descendants follow it without a gap, so that one integer a node,
``subtree_end``, is the whole attention mask:

    query q sees key k   <=>   k <= q < subtree_end[k]

and a node's depth is its position id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

TokenIds = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """A forest of token sequences in depth-first order.

    Args:
        tokens: Token of each node.
        depths: Number of tokens before it.
        subtree_end: One past its last descendant.
        paths: For each sequence as given, the nodes of its tokens.
    """

    tokens: NDArray[np.int64]
    depths: NDArray[np.int64]
    subtree_end: NDArray[np.int64]
    paths: tuple[NDArray[np.int64], ...]

    @property
    def num_nodes(self) -> int:
        """Number of distinct non-empty prefixes."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some of a step's sequences as one packed row, and which next-token predictions to read from it.

    The last token of a sequence is predicted but never read, so it is no node unless another sequence goes on from it.
    Predictions are in a fixed order: sequences as given to :func:`micro_batches`, tokens from ``trained_from`` to the
    end. Equal predictions (same prefix, same token) share one edge and are computed once.

    Args:
        sequences: Places of this micro-batch's sequences in the step, ascending.
        input_ids: Token of each node.
        position_ids: Depth of each node.
        subtree_end: One past each node's last descendant.
        edge_nodes: Node whose hidden state predicts, for each distinct prediction.
        edge_targets: Token it predicts.
        edge_index: Edge of each trained token.
        sequence_index: Sequence of each trained token.
        token_index: Place of each trained token in its sequence.
    """

    sequences: tuple[int, ...]
    input_ids: Int[Tensor, " nodes"]
    position_ids: Int[Tensor, " nodes"]
    subtree_end: Int[Tensor, " nodes"]
    edge_nodes: Int[Tensor, " edges"]
    edge_targets: Int[Tensor, " edges"]
    edge_index: Int[Tensor, " tokens"]
    sequence_index: Int[Tensor, " tokens"]
    token_index: Int[Tensor, " tokens"]

    @property
    def num_nodes(self) -> int:
        """Tokens that go through the model."""
        return len(self.input_ids)

    @property
    def num_trained(self) -> int:
        """Trained tokens, equal ones counted as often as they occur."""
        return len(self.edge_index)

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy on ``device``."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "sequences"}
        return replace(self, **tensors)


def build_tree(sequences: Sequence[TokenIds]) -> PrefixTree:
    """Merge sequences into a prefix tree; common prefixes, and with them equal sequences, merge.

    Raises:
        ValueError: If there is no sequence or one is empty.
    """
    arrays = _arrays(sequences)
    order, shared = _sort(arrays)
    paths: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(arrays)
    total = int(sum(len(arrays[b]) - lcp for b, lcp in zip(order, shared, strict=True)))
    tokens, depths, subtree_end = np.empty((3, total), np.int64)
    path, size = np.empty(0, np.int64), 0
    for b, lcp in zip(order, shared, strict=True):
        new = np.arange(size, size + len(arrays[b]) - lcp)
        tokens[new] = arrays[b][lcp:]
        depths[new] = np.arange(lcp, len(arrays[b]))
        subtree_end[path[lcp:]] = (
            size  # the nodes that this sequence does not go through have no more descendants
        )
        path = paths[b] = np.concatenate([path[:lcp], new])
        size += len(new)
    subtree_end[path] = size
    return PrefixTree(tokens, depths, subtree_end, tuple(paths))


def micro_batches(
    sequences: Sequence[TokenIds], trained_from: Sequence[int], max_tokens: int
) -> list[MicroBatch]:
    """Cut a step's sequences into prefix trees of at most ``max_tokens`` nodes.

    Sorted neighbours share most, so a micro-batch is a run of sorted sequences. Cuts are placed where they cost the
    fewest tokens in all (what both sides of a cut share is computed twice), and among those the fewest micro-batches
    are made. A sequence that is too long by itself stands alone. The same input gives the same result.

    Args:
        sequences: Token ids, prompt and completion.
        trained_from: First trained token of each sequence, at least 1: the first token has nothing before it.
        max_tokens: Largest number of nodes (tokens through the model) in a micro-batch.

    Returns:
        Micro-batches that hold every sequence once.

    Raises:
        ValueError: If a sequence has no trained token or the arguments do not fit together.
    """
    check_sequences(sequences, trained_from)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    arrays = _arrays(sequences)
    order, shared = _sort([array[:-1] for array in arrays])
    lengths = np.array([len(arrays[b]) - 1 for b in order])
    bounds = _cuts(lengths, np.array(shared), max_tokens)
    return [_micro_batch(arrays, trained_from, sorted(order[start:end])) for start, end in pairwise(bounds)]


def check_sequences(sequences: Sequence[TokenIds], trained_from: Sequence[int]) -> None:
    """Make sure that every sequence has a token to train, and one before it.

    Raises:
        ValueError: If not; it names the sequence.
    """
    if len(sequences) == 0:
        raise ValueError("there must be at least one sequence")
    if len(sequences) != len(trained_from):
        raise ValueError(f"trained_from has {len(trained_from)} entries for {len(sequences)} sequences")
    for b, (sequence, first) in enumerate(zip(sequences, trained_from, strict=True)):
        if len(sequence) < 2:
            raise ValueError(
                f"sequence {b} has {len(sequence)} tokens; it needs one to train and one before it"
            )
        if not 1 <= first < len(sequence):
            raise ValueError(
                f"sequence {b} has {len(sequence)} tokens, so trained_from must lie in 1..{len(sequence) - 1}, "
                f"not be {first}"
            )


def _micro_batch(
    arrays: Sequence[NDArray[np.int64]], trained_from: Sequence[int], sequences: list[int]
) -> MicroBatch:
    tree = build_tree([arrays[b][:-1] for b in sequences])
    nodes = np.concatenate(
        [path[trained_from[b] - 1 :] for b, path in zip(sequences, tree.paths, strict=True)]
    )
    targets = np.concatenate([arrays[b][trained_from[b] :] for b in sequences])
    edges, edge_index = np.unique(np.stack([nodes, targets]), axis=1, return_inverse=True)
    counts = [len(arrays[b]) - trained_from[b] for b in sequences]
    return MicroBatch(
        sequences=tuple(sequences),
        input_ids=torch.from_numpy(tree.tokens),
        position_ids=torch.from_numpy(tree.depths),
        subtree_end=torch.from_numpy(tree.subtree_end),
        edge_nodes=torch.from_numpy(edges[0].copy()),
        edge_targets=torch.from_numpy(edges[1].copy()),
        edge_index=torch.from_numpy(edge_index.reshape(-1)),
        sequence_index=torch.from_numpy(np.repeat(sequences, counts)),
        token_index=torch.from_numpy(
            np.concatenate([np.arange(trained_from[b], len(arrays[b])) for b in sequences])
        ),
    )


def _arrays(sequences: Sequence[TokenIds]) -> list[NDArray[np.int64]]:
    if len(sequences) == 0:
        raise ValueError("there must be at least one sequence")
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    for b, array in enumerate(arrays):
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"sequence {b} must be a non-empty list of token ids")
    return arrays


def _sort(arrays: Sequence[NDArray[np.int64]]) -> tuple[list[int], list[int]]:
    """Lexicographic order, and how many tokens each sorted sequence shares with the one before it."""
    order = sorted(range(len(arrays)), key=lambda b: (arrays[b].tolist(), b))
    return order, [0, *(_common_prefix(arrays[a], arrays[b]) for a, b in pairwise(order))]


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _cuts(lengths: NDArray[np.int64], shared: NDArray[np.int64], max_tokens: int) -> list[int]:
    """Bounds of runs of at most ``max_tokens`` nodes with the fewest nodes in all, then the fewest runs.

    A run start:end has lengths[start] + sum(new[start + 1 : end]) nodes, where new = lengths - shared. Shortest path
    over the possible bounds.
    """
    new = np.concatenate([[0], np.cumsum(lengths - shared)])
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # nodes and runs up to this bound, and the bound before
    for end in range(1, len(lengths) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            nodes = int(new[end] - new[start] + shared[start])
            if nodes > max_tokens and start < end - 1:
                break
            options.append((best[start][0] + nodes, best[start][1] + 1, start))
        best.append(min(options))
    bounds = [len(lengths)]
    while bounds[-1]:
        bounds.append(best[bounds[-1]][2])
    return bounds[::-1]
