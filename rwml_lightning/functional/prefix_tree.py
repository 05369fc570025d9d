"""Token sequences as a prefix tree, so that common prefixes are computed once.

Members of a group share their prompt, turns of an episode share their history, and some completions are identical. In a
causal model, the hidden state at a token depends only on this token and those before it. So every distinct prefix needs
one position in the forward pass, independent of the number of sequences that contain it.

The nodes are in depth-first order, which results from sorting the sequences: each sorted sequence adds the part that its
predecessor does not have. In this order the descendants of a node follow it without a gap. So one integer per node,
``subtree_end``, defines the whole attention mask:

    query q attends to key k   <=>   k <= q < subtree_end[k]

The depth of a node is its position id.
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
        depths: Depth of each node: number of tokens before it.
        subtree_end: Index one past the last descendant of each node.
        paths: Nodes of the tokens of each sequence, in the order of the input.
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
    """Some sequences of a step as one packed row, with the next-token predictions to read from it.

    The last token of a sequence is predicted but not fed to the model, so it is not a node unless another sequence continues
    after it. Predictions are in a fixed order: sequences as given to :func:`micro_batches`, tokens from ``trained_from`` to
    the end. Equal predictions (same prefix, same token) share one edge and are computed once.

    Args:
        sequences: Indices of the sequences of this micro-batch in the step, ascending.
        input_ids: Token of each node.
        position_ids: Depth of each node.
        subtree_end: Index one past the last descendant of each node.
        edge_nodes: Node that makes each distinct prediction.
        edge_targets: Target token of each distinct prediction.
        edge_index: Edge of each trained token.
        sequence_index: Sequence of each trained token.
        token_index: Index of each trained token in its sequence.
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
        """Number of tokens in the forward pass."""
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return a copy on ``device``."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "sequences"}
        return replace(self, **tensors)


def build_tree(sequences: Sequence[TokenIds]) -> PrefixTree:
    """Merge sequences into a prefix tree; common prefixes and equal sequences share nodes.

    Raises:
        ValueError: If there is no sequence, or a sequence is empty.
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
        subtree_end[path[lcp:]] = size  # nodes not on the path of this sequence get no more descendants
        path = paths[b] = np.concatenate([path[:lcp], new])
        size += len(new)
    subtree_end[path] = size
    return PrefixTree(tokens, depths, subtree_end, tuple(paths))


def micro_batches(
    sequences: Sequence[TokenIds], trained_from: Sequence[int], max_tokens: int
) -> list[MicroBatch]:
    """Split the sequences of a step into prefix trees of at most ``max_tokens`` nodes.

    Neighbours in sorted order share the longest prefixes, so a micro-batch is a contiguous range of sorted sequences. The
    split minimises the total number of nodes (a prefix shared across a boundary is computed twice), then the number of
    micro-batches. A sequence with more than ``max_tokens`` nodes gets a micro-batch alone. The result is deterministic.

    Args:
        sequences: Token ids of prompt and completion.
        trained_from: Index of the first trained token of each sequence, at least 1, because nothing predicts the first token.
        max_tokens: Maximum number of nodes (tokens in the forward pass) per micro-batch.

    Returns:
        Micro-batches, which together hold every sequence once.

    Raises:
        ValueError: If a sequence has no trained token, or the arguments do not match.
    """
    packer = Packer(sequences, trained_from)
    return [packer.pack(part) for part in packer.split(max_tokens)]


@dataclass(frozen=True)
class Part:
    """Sequences that share a micro-batch.

    Args:
        sequences: Indices of the sequences, ascending.
        num_nodes: Number of nodes of their prefix tree.
    """

    sequences: list[int]
    num_nodes: int


class Packer:
    """Sequences of a step in sorted order. They can be split in several ways, and only the parts that are used are packed.

    Args:
        sequences: Token ids of prompt and completion.
        trained_from: Index of the first trained token of each sequence, at least 1, because nothing predicts the first token.

    Raises:
        ValueError: If a sequence has no trained token, or the arguments do not match.
    """

    def __init__(self, sequences: Sequence[TokenIds], trained_from: Sequence[int]) -> None:
        check_sequences(sequences, trained_from)
        self.arrays = _arrays(sequences)
        self.trained_from = trained_from
        self.order, shared = _sort([array[:-1] for array in self.arrays])
        self.lengths = np.array([len(self.arrays[b]) - 1 for b in self.order])
        self.shared = np.array(shared)

    def split(self, max_tokens: int) -> list[Part]:
        """Split the sequences as :func:`micro_batches` does, without making tensors."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        new = self.lengths - self.shared
        return [
            Part(sorted(self.order[start:end]), int(new[start:end].sum() + self.shared[start]))
            for start, end in pairwise(_cuts(self.lengths, self.shared, max_tokens))
        ]

    def pack(self, part: Part) -> MicroBatch:
        """Make the tensors of a part."""
        return _micro_batch(self.arrays, self.trained_from, part.sequences)


def padding_micro_batch() -> MicroBatch:
    """Make a micro-batch of one token that trains nothing, for a rank that has to take part in a pass without work."""
    nothing = torch.empty(0, dtype=torch.long)
    zero = torch.zeros(1, dtype=torch.long)
    return MicroBatch((), zero, zero, zero + 1, zero, zero, nothing, nothing, nothing)


def check_sequences(sequences: Sequence[TokenIds], trained_from: Sequence[int]) -> None:
    """Check that every sequence has a token to train and a token before it.

    Raises:
        ValueError: If a sequence has not; the message names it.
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
    """Sort lexicographically; return the order and the length of the prefix that each sequence shares with the previous one."""
    order = sorted(range(len(arrays)), key=lambda b: (arrays[b].tolist(), b))
    return order, [0, *(_common_prefix(arrays[a], arrays[b]) for a, b in pairwise(order))]


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _cuts(lengths: NDArray[np.int64], shared: NDArray[np.int64], max_tokens: int) -> list[int]:
    """Find the bounds of ranges of at most ``max_tokens`` nodes with the fewest nodes in total, then the fewest ranges.

    A range start:end has lengths[start] + sum(new[start + 1 : end]) nodes, where new = lengths - shared. The algorithm is a
    shortest path over the possible bounds.
    """
    new = np.concatenate([[0], np.cumsum(lengths - shared)])
    best: list[tuple[int, int, int]] = [
        (0, 0, 0)
    ]  # nodes and ranges up to this bound, and the previous bound
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
