"""The cache and the bookkeeping of groups by hand: what is kept, seen, forgotten, and how often memory is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rwml_lightning.generation import group_decoding
from rwml_lightning.generation.group_cache import GroupCache, GroupCacheLayer, grouped_sdpa
from rwml_lightning.generation.group_decoding import (
    NOBODY,
    SHARED,
    _additive,
    _drop,
    _first_slots,
    _prefill,
    _repack,
    _visible,
    check_decodable,
)

HEADS, DIM = 2, 3


def states(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, HEADS, columns, DIM), torch.randn(rows, HEADS, columns, DIM)


def test_the_cache_gives_back_all_that_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of a prompt of three columns, each written on its own, then one column at a time for both."""
    taken: list[int] = []
    allocate = GroupCacheLayer._allocate
    monkeypatch.setattr(
        GroupCacheLayer, "_allocate", lambda *a: (taken.append(a[0].cache.capacity), allocate(*a))[1]
    )
    cache, written = GroupCache(2, capacity=4), [states(2, 3)]
    for row in (0, 1):
        cache.place(slice(row, row + 1), 0)
        got = cache.update(*(part[row : row + 1] for part in written[0]), 0)
        assert [part.shape for part in got] == [(1, HEADS, 3, DIM)] * 2
    for column in range(3, 40):
        cache.place(slice(None), column)
        assert cache.get_seq_length() == column
        written.append(states(2, 1))
        keys, values = cache.update(*written[-1], 0)
        assert torch.equal(keys, torch.cat([k for k, _ in written], dim=2))
        assert torch.equal(values, torch.cat([v for _, v in written], dim=2))
    assert (
        taken[::2] == taken[1::2] == [4, 7, 12, 19, 30, 46]
    )  # keys and values; half as much again when full


def test_a_layer_that_comes_later_has_what_is_needed_at_once() -> None:
    cache = GroupCache(1, capacity=2)
    first = states(1, 5)
    assert torch.equal(cache.update(*first, 0)[0], first[0])
    assert torch.equal(cache.update(*first, 1)[1], first[1])
    assert [layer.keys.shape for layer in cache.layers] == [(1, HEADS, 7, DIM)] * 2


def test_only_what_is_kept_remains() -> None:
    cache, (keys, values) = GroupCache(3, capacity=6), states(3, 6)
    cache.update(keys, values, 0)
    cache.keep(torch.tensor([2, 0]), torch.tensor([[0, 1, 5, 3], [4, 2, 1, 0]]))
    (layer,) = cache.layers
    for kept, whole in ((layer.keys, keys), (layer.values, values)):
        assert kept.shape == (2, HEADS, 6, DIM)
        assert torch.equal(kept[0, :, :4], whole[2][:, [0, 1, 5, 3]])
        assert torch.equal(kept[1, :, :4], whole[0][:, [4, 2, 1, 0]])
        assert not kept[:, :, 4:].any()  # garbage could be NaN
    cache.place(slice(None), 4)
    more = states(2, 1)
    assert torch.equal(cache.update(*more, 0)[0][:, :, 4:], more[0])


def test_masks_are_as_wide_as_what_is_read() -> None:
    cache = GroupCache(1, capacity=8)
    cache.update(*states(1, 5), 0)
    cache.place(slice(None), 5)
    (layer,) = cache.layers
    assert layer.get_mask_sizes(3) == (8, 0)
    assert layer.get_max_length() == -1


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_shared_heads_is_that_of_repeated_ones(scaling: float | None, masked: bool) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 2 * HEADS, 4, DIM), states(2, 4)
    mask = torch.zeros(2, 1, 4, 4).masked_fill_(torch.rand(2, 1, 4, 4) < 0.4, -1e9) if masked else None
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    ours, _ = grouped_sdpa(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous()
    biased = {"position_bias": torch.randn(1, 2 * HEADS, 4, 4)}
    if masked:
        torch.testing.assert_close(
            grouped_sdpa(module, query, key, value, mask, scaling=scaling, **biased)[0],
            sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **biased)[0],
        )


def test_slots_count_through_all_groups() -> None:
    assert _first_slots([2, 0, 3]).tolist() == [[0, 1, NOBODY], [NOBODY] * 3, [2, 3, 4]]


def test_a_member_sees_the_prompt_and_itself() -> None:
    owner = torch.tensor([[SHARED, SHARED, 0, 1, 0, NOBODY]])
    visible = _visible(owner, torch.tensor([[0, 1]]))
    assert visible.tolist() == [
        [[True, True, True, False, True, False], [True, True, False, True, False, False]]
    ]
    mask = _additive(visible, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, visible)
    assert mask.min() == torch.finfo(torch.bfloat16).min


def test_gone_members_leave_no_gap() -> None:
    slots = torch.tensor([[0, 1, 2], [3, 4, NOBODY]])
    assert _drop(slots, torch.tensor([0, 4])).tolist() == [[1, 2], [3, NOBODY]]
    assert _drop(slots, torch.tensor([0, 1, 2])).tolist() == [[NOBODY, NOBODY], [3, 4]]
    assert _drop(slots, torch.arange(5)).shape == (2, 0)


class Kept:
    """A cache that only notes what it is to keep."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.columns: list[list[int]] = []

    def keep(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows.tolist(), columns.tolist()


def repack(owner: list[list[int]], slots: list[list[int]]) -> tuple[Kept, list[list[int]], list[list[int]]]:
    cache: Any = Kept()
    new_owner, new_slots = _repack(cache, torch.tensor(owner), torch.tensor(slots))
    return cache, new_owner.tolist(), new_slots.tolist()


def test_a_quarter_is_what_repacking_must_free() -> None:
    """Rows of eight columns, of which six, or seven, are still seen."""
    owner = [SHARED, SHARED, SHARED, 0, 1, 2, 0, 1]
    cache, new, slots = repack([owner], [[0, 1]])
    assert (cache.rows, new, slots) == ([], [owner], [[0, 1]])  # an eighth: not worth it
    cache, new, slots = repack([[SHARED, SHARED, SHARED, 0, 2, 2, 0, 1]], [[0, 1]])
    assert cache.rows == [0]
    assert cache.columns == [[0, 1, 2, 3, 6, 7]]
    assert new == [[SHARED, SHARED, SHARED, 0, 0, 1]]
    assert slots == [[0, 1]]


def test_finished_groups_and_members_are_forgotten() -> None:
    shorter = [SHARED, NOBODY, 4, 4]
    cache, new, slots = repack(
        [[SHARED, SHARED, 0, 0], [SHARED, SHARED, 2, 2], shorter], [[0, 1], [NOBODY] * 2, [4, NOBODY]]
    )
    assert cache.rows == [0, 2]
    assert cache.columns == [[0, 1, 2, 3], [0, 2, 3, 1]]
    assert new == [[SHARED, SHARED, 0, 0], [SHARED, 4, 4, NOBODY]]
    assert slots == [[0, 1], [4, NOBODY]]


def test_nothing_left_is_nothing_to_repack() -> None:
    cache, new, slots = repack([[SHARED, 0]], [[NOBODY]])
    assert (cache.rows, new, slots) == ([], [[SHARED, 0]], [[NOBODY]])


class Reader:
    """A model that notes what it reads."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.read: list[tuple[list[list[int]], list[int], slice, int]] = []

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool,
        logits_to_keep: int,
    ) -> None:
        assert use_cache
        assert logits_to_keep == 1  # nobody reads them
        assert position_ids.shape == input_ids.shape
        place = past_key_values.rows, past_key_values.start
        self.read.append((input_ids.tolist(), position_ids[0].tolist(), *place))


@pytest.mark.parametrize(
    ("tokens_a_pass", "passes"),
    [
        (8192, [([[1, 2], [5, 0], [0, 0]], [0, 1], slice(0, 3), 0)]),
        (6, [([[1, 2], [5, 0], [0, 0]], [0, 1], slice(0, 3), 0)]),
        (5, [([[1, 2], [5, 0]], [0, 1], slice(0, 2), 0)]),  # the third prompt is a single token
        (1, [([[1, 2]], [0, 1], slice(0, 1), 0), ([[5]], [0], slice(1, 2), 0)]),
    ],
)
def test_prompts_are_read_but_for_their_last_token(
    tokens_a_pass: int, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_decoding, "PREFILL_TOKENS", tokens_a_pass)
    model: Any = Reader()
    owner = _prefill(model, GroupCache(3, 4), [[1, 2, 3], [5, 6], [7]])
    assert owner.tolist() == [[SHARED, SHARED], [SHARED, NOBODY], [NOBODY, NOBODY]]
    assert model.read == passes


def test_single_tokens_need_no_reading() -> None:
    model: Any = Reader()
    assert _prefill(model, GroupCache(2, 4), [[3], [7]]).shape == (2, 0)
    assert model.read == []


def make_decodable(
    forward: Any = lambda input_ids, position_ids: None, stateful: bool = False, **config: Any
) -> Any:
    text = SimpleNamespace(**config, get_text_config=lambda: text)
    whole = SimpleNamespace(get_text_config=lambda: text)
    return type("Odd", (), {"config": whole, "_is_stateful": stateful, "forward": staticmethod(forward)})()


def test_what_a_mask_cannot_express_is_refused() -> None:
    masked = ["full_attention", "sliding_attention", "chunked_attention"]
    check_decodable(make_decodable(), 999)
    check_decodable(make_decodable(layer_types=masked, use_sliding_window=False), 999)
    for odd in (
        make_decodable(layer_types=[*masked, "linear_attention"]),
        make_decodable(stateful=True),
        make_decodable(forward=lambda input_ids: None),
    ):
        with pytest.raises(
            ValueError, match=r"HFGenerator cannot decode Odd \(recurrent or other special layers\)"
        ):
            check_decodable(odd, 1)
    windowed = make_decodable(sliding_window=24)
    check_decodable(windowed, 24)
    with pytest.raises(ValueError, match="25 tokens exceed the sliding_window of 24 of Odd, beyond which"):
        check_decodable(windowed, 25)
