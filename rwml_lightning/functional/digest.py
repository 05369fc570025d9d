"""Digests of tensors: whether two sides hold the same bits, without bringing them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

_COLUMNS = 1 << 16  # 32-bit words; a row of them stays in a CPU's cache
_MULTIPLIER = 1540483477  # odd, so that a multiplication by it modulo 2^32 loses no bit


def tensor_digest(name: str, tensor: Tensor) -> int:
    """Digest of one tensor: of its name, dtype, shape and every bit of its values.

    The values are read as rows of 32-bit words. Each word is multiplied by an odd number that belongs to its row and
    column, modulo 2^32, and the products are added, so that a changed bit changes the sum, and an exchange of places
    does. It runs at the speed of memory, on any device, and gives the same on all.

    Args:
        name: Name of the tensor.
        tensor: Any dtype, shape and device.

    Returns:
        128 bits.
    """
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    missing = -content.numel() % 8
    if missing or content.storage_offset() % 8:  # whole words, each where a word may begin
        content = pad(content, (0, missing))
    words = content.view(torch.int32)
    columns = torch.zeros(min(_COLUMNS, words.numel()), dtype=torch.int32, device=words.device)
    for row in words.split(_COLUMNS):
        own = columns[: row.numel()]
        torch.add(row, own, alpha=_MULTIPLIER, out=own)  # Horner's rule: earlier rows get higher powers
    places = torch.arange(columns.numel(), dtype=torch.int32, device=words.device)
    total = int((columns * (2 * places + 1)).view(torch.int64).sum())
    text = repr((name, str(tensor.dtype), tuple(tensor.shape), total))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def combine_digests(digests: Iterable[int]) -> str:
    """Digest of a set of tensors, in whatever order they come: 128 bits in hexadecimal."""
    return f"{sum(digests) % (1 << 128):032x}"


def digesting(
    named_tensors: Iterable[tuple[str, Tensor]], digests: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they are, while the digest of each that is taken is added to a list."""
    for name, tensor in named_tensors:
        digests.append(tensor_digest(name, tensor))
        yield name, tensor
