"""Digests of tensors, to check that two processes hold the same bits without copying the tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

_COLUMNS = 1 << 16  # 32-bit words; a row of them stays in a CPU's cache
_MULTIPLIER = 1540483477  # odd, so that multiplication modulo 2^32 is invertible


def tensor_digest(name: str, tensor: Tensor) -> int:
    """Compute a digest of the name, dtype, shape and all bits of a tensor.

    The values are read as rows of 32-bit words. Each word is multiplied by an odd number for its row and column, modulo 2^32,
    and the products are added, so that a changed bit or two swapped words change the sum. The function runs at memory
    bandwidth on any device, and the result does not depend on the device.

    Args:
        name: Name of the tensor.
        tensor: Tensor of any dtype, shape and device.

    Returns:
        Digest of 128 bits.
    """
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    missing = -content.numel() % 8
    if missing or content.storage_offset() % 8:  # pad to whole words and align them
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
    """Combine digests into the digest of a set of tensors, independent of their order: 128 bits in hexadecimal."""
    return f"{sum(digests) % (1 << 128):032x}"


def digesting(
    named_tensors: Iterable[tuple[str, Tensor]], digests: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors unchanged and append the digest of each one to ``digests``."""
    for name, tensor in named_tensors:
        digests.append(tensor_digest(name, tensor))
        yield name, tensor
