"""Stochastic rounding and numbers of 8 bits, against their definitions."""

from __future__ import annotations

import pytest
import torch

from rwml_lightning.functional.low_precision import (
    block_size,
    dequantise,
    levels,
    quantise,
    random_bits,
    round_stochastically,
)


def test_bits_are_uniform_and_follow_from_key_and_position() -> None:
    bits = random_bits((3, 4), 0, 1 << 18)
    assert int(bits.min()) >= 0
    assert int(bits.max()) <= 0xFFFF
    counts = torch.bincount(bits >> 8, minlength=256).double()
    expected = (1 << 18) / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 400  # chi-squared with 255 degrees of freedom
    successive = torch.corrcoef(torch.stack([bits[:-1].double(), bits[1:].double()]))[0, 1]
    assert abs(float(successive)) < 0.01
    assert torch.equal(random_bits((3, 4), 1000, 50), bits[1000:1050])
    for key in ((3, 5), (4, 4), (4, 3)):
        assert float((random_bits(key, 0, 1 << 18) == bits).double().mean()) < 1e-3
    assert random_bits((2**31 - 1, 2**31 - 1), 2**31 - 8, 8).numel() == 8


@pytest.mark.parametrize("value", [1.0, 1.001, -1.001, 3.1415927, -1e-20, 0.0])
def test_a_number_is_rounded_to_its_neighbours_and_is_right_in_the_mean(value: float) -> None:
    values = torch.full((1 << 17,), value)
    rounded = round_stochastically(values, random_bits((1, 2), 0, len(values))).double()
    exact = values[0].double()
    step = abs(float(exact)) * 2.0**-7
    assert float((rounded - exact).abs().max()) <= step
    assert len(rounded.unique()) == (1 if value in (0.0, 1.0) else 2)
    assert abs(float(rounded.mean() - exact)) <= 6 * step / 2 / len(values) ** 0.5


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_of_8_bits_are_the_levels_nearest_to_their_float16(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8 * 64, generator=generator) * torch.logspace(-3, 3, 8).repeat_interleave(64)
    values = values if signed else values.abs()
    numbers = quantise(values, 64, signed)
    assert (numbers.codes.dtype, numbers.codes.shape, numbers.scales.shape) == (torch.uint8, (512,), (8,))
    found = dequantise(numbers, signed)
    largest = values.view(8, 64).abs().amax(dim=1).repeat_interleave(64)
    relative = (values / largest).half().float()
    distances = (relative[:, None] - levels(signed)).abs()
    chosen = (found / largest - relative).abs()
    assert float((chosen - distances.amin(dim=1)).max()) < 1e-6
    assert float(((found - values).abs() / largest).max()) < (0.0073 if signed else 0.0038)


def test_no_second_moment_is_rounded_to_zero() -> None:
    values = torch.tensor([1.0, *[1e-12] * 15])
    found = dequantise(quantise(values, 16, signed=False), signed=False)
    assert float(found.min()) == pytest.approx(1e-8)
    zeros = torch.zeros(16)
    assert torch.equal(dequantise(quantise(zeros, 16, signed=False), signed=False), zeros)


@pytest.mark.parametrize(
    ("width", "block"), [(3584, 256), (576, 192), (49152, 256), (16, 16), (577, None), (8, None), (1, None)]
)
def test_blocks_divide_a_row(width: int, block: int | None) -> None:
    assert block_size(width) == block
