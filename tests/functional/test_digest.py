from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from rwml_lightning.functional import combine_digests, digesting, tensor_digest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_every_element_counts(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 2, (5, 7)).to(dtype)
    whole = tensor_digest("a", tensor)
    seen = {whole}
    for place in range(tensor.numel()):
        changed = tensor.clone()
        changed.view(-1).view(torch.uint8)[place * tensor.element_size()] ^= 1
        seen.add(tensor_digest("a", changed))
    assert len(seen) == tensor.numel() + 1
    assert tensor_digest("a", tensor.clone()) == whole


def test_one_bit_far_in_a_large_tensor_counts() -> None:
    tensor = torch.randn(3, 70_001)
    whole = tensor_digest("a", tensor)
    tensor[2, 70_000] = torch.nextafter(tensor[2, 70_000], torch.tensor(9.0))
    assert tensor_digest("a", tensor) != whole


@pytest.mark.parametrize("places", [(0, 1), (0, 1 << 16), (5, (1 << 17) + 6)])
def test_an_exchange_of_places_counts(places: tuple[int, int]) -> None:
    tensor = torch.arange(1 << 18, dtype=torch.float32)
    whole = tensor_digest("a", tensor)
    tensor[list(places)] = tensor[list(places[::-1])]
    assert tensor_digest("a", tensor) != whole


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, -2.0, 3.25]),
        torch.arange(-3, 4, dtype=torch.int16).view(1, 7),
        torch.arange(80_001.0).view(3, -1),
        torch.empty(0, 2),
    ],
)
def test_the_digest_is_the_one_that_its_rule_gives(tensor: torch.Tensor) -> None:
    """By whole numbers: rows of 65,536 words, Horner's rule down a column, an odd factor for each column."""
    content = tensor.numpy().tobytes()
    content += bytes(-len(content) % 8)
    words = struct.unpack(f"<{len(content) // 4}I", content)
    products = []
    for column in range(min(65_536, len(words))):
        value = 0
        for word in words[column::65_536]:
            value = (1540483477 * value + word) % (1 << 32)
        products.append(value * (2 * column + 1) % (1 << 32))
    pairs = zip(products[::2], products[1::2], strict=True)
    total = sum(low + (high << 32) for low, high in pairs) % (1 << 64)
    signed = total - (1 << 64) * (total >> 63)
    text = repr(("layer.weight", str(tensor.dtype), tuple(tensor.shape), signed))
    expected = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    digest = tensor_digest("layer.weight", tensor)
    assert f"{digest:032x}" == expected
    assert combine_digests([digest]) == expected


def test_sums_of_digests_stay_within_128_bits() -> None:
    assert combine_digests([]) == "0" * 32
    assert combine_digests([(1 << 128) - 1, 3]) == "0" * 31 + "2"


def test_name_shape_and_dtype_count() -> None:
    zeros = torch.zeros(4, 2)
    others = [zeros.T.contiguous(), zeros.int(), zeros.flatten()]
    digests = {tensor_digest("a", tensor) for tensor in (zeros, *others)} | {tensor_digest("b", zeros)}
    assert len(digests) == 5


def test_layout_in_memory_does_not_count() -> None:
    base = torch.randn(9, 4).bfloat16()
    assert tensor_digest("a", base.T) == tensor_digest("a", base.T.contiguous())
    odd = base.flatten()[1:4]  # begins where no 32-bit word may begin
    assert tensor_digest("a", odd) == tensor_digest("a", odd.clone())
    assert tensor_digest("a", torch.empty(0)) != tensor_digest("a", torch.tensor(0.0))
    nan = torch.tensor([float("nan")])
    assert tensor_digest("a", nan) == tensor_digest("a", nan.clone())


def test_order_of_tensors_does_not_count_and_each_does() -> None:
    tensors = {"a": torch.randn(3), "b": torch.randn(3), "c": torch.ones(1)}
    digests: list[int] = []
    assert dict(digesting(tensors.items(), digests)) == tensors
    whole = combine_digests(digests)
    assert combine_digests(digests[::-1]) == whole
    assert combine_digests(digests[:2]) != whole
