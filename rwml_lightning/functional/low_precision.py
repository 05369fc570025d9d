"""Rounding for training in low precision: stochastic rounding to bfloat16, and numbers of 8 bits with a scale per block."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor

LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 16
_DECADES = 7


def random_bits(
    key: tuple[int, int], start: int, count: int, device: torch.device | str = "cpu"
) -> Int32[Tensor, " count"]:
    """Compute 16 random bits for each of ``count`` consecutive positions.

    The bits are a hash of key and position, so they depend neither on the device nor on how a tensor is split: two rounds of the
    finalizer of MurmurHash3.

    Args:
        key: Two integers in [0, 2**31).
        start: First position.
        count: Number of positions.
        device: Device of the result.
    """
    bits = torch.arange(start, start + count, dtype=torch.int32, device=device)
    for part in key:
        bits = bits.bitwise_xor_(part)
        bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(-2048144789)
        bits.bitwise_xor_((bits >> 13).bitwise_and_(0x7FFFF)).mul_(-1028477387)
        bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    return bits.bitwise_and_(0xFFFF)


def round_stochastically(
    values: Float32[Tensor, "*shape"], bits: Int32[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Round to one of the two neighbours in bfloat16, so that the expected result is the value.

    Rounding to the nearest number would lose every change that is smaller than half the distance of two neighbours, which is
    nearly every step of AdamW at a learning rate of 1e-6.

    Args:
        values: Finite numbers.
        bits: Uniform integers in [0, 2**16).

    Returns:
        Rounded numbers, in bfloat16.
    """
    # bfloat16 is the upper half of float32. The lower half is the probability of the neighbour further from 0.
    upper = (values.view(torch.int32) + bits).bitwise_and_(-65536)
    return upper.view(torch.float32).to(torch.bfloat16)


class Quantised(NamedTuple):
    """Numbers of 8 bits.

    Args:
        codes: Index of each number in the table of :func:`levels`.
        scales: Largest absolute value of each block of consecutive numbers.
    """

    codes: UInt8[Tensor, " numbers"]
    scales: Float32[Tensor, " blocks"]


def block_size(width: int) -> int | None:
    """Return the largest number of at most 256 that divides ``width``; ``None`` if it is below 16, where scales take too much."""
    largest = max(size for size in range(1, min(width, LARGEST_BLOCK) + 1) if width % size == 0)
    return largest if largest >= _SMALLEST_BLOCK else None


def quantise(values: Float32[Tensor, " numbers"], block: int, signed: bool) -> Quantised:
    """Round numbers to 8 bits: to the level nearest to their float16, relative to the largest absolute value of their block.

    Args:
        values: Numbers; their count is a multiple of ``block``.
        block: Size of a block.
        signed: Whether numbers may be negative. Without a sign there are twice as many levels above 0, and none at 0.
    """
    blocks = values.view(-1, block)
    scales = blocks.abs().amax(dim=1)
    relative = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
    halves = relative.to(torch.float16).view(torch.int16).view(-1).int().bitwise_and_(0xFFFF)
    return Quantised(_codes_of_halves(signed, values.device).index_select(0, halves), scales)


def dequantise(numbers: Quantised, signed: bool) -> Float32[Tensor, " numbers"]:
    """Return the numbers of :func:`quantise`."""
    codes, scales = numbers
    relative = _levels_on(signed, codes.device).index_select(0, codes.int())
    return relative.view(len(scales), -1).mul_(scales[:, None]).view(-1)


@cache
def levels(signed: bool) -> Float32[Tensor, " levels"]:
    """Return the 256 levels in [-1, 1] or [0, 1]: dense near 1 and over seven powers of ten (arXiv 2110.02861, section 2.2).

    Each power of ten below 1 has half as many levels as the one above it. Without a sign there is no level 0: a second moment that
    is rounded to 0 would make a step of any size.
    """
    above: list[float] = []
    for decade in range(_DECADES):
        count = 2 ** (_DECADES - 1 - decade + (0 if signed else 1))
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        above += ((edges[:-1] + edges[1:]) / 2 * 10.0**-decade).tolist()
    numbers = [*above, 1.0, *([0.0, *(-level for level in above)] if signed else [10.0 ** -(_DECADES + 1)])]
    table = torch.tensor(sorted(numbers), dtype=torch.float32)
    assert len(table) == 256
    return table


@cache
def _levels_on(signed: bool, device: torch.device) -> Float32[Tensor, " levels"]:
    return levels(signed).to(device)


@cache
def _codes_of_halves(signed: bool, device: torch.device) -> UInt8[Tensor, " halves"]:
    """Return the code of every number in float16: a look-up is much faster than a search."""
    table = levels(signed)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).roll(2**15).view(torch.float16).float()
    codes = torch.bucketize(halves, (table[:-1] + table[1:]) / 2)
    return codes.to(torch.uint8).to(device)
