"""Edges of what is allowed, and promises about work rather than values: both slip through a comparison of numbers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import PhiConfig, PhiForCausalLM

from rwml_lightning.functional import (
    attention,
    build_tree,
    checkpointing_arguments,
    chunked_logprobs,
    clipped_surrogate,
    group_advantages,
    logprobs,
    micro_batches,
    packed,
    packed_logprobs,
    plain_logprobs,
    token_weights,
    truncated_importance_weights,
    verify_packing,
)
from rwml_lightning.functional.attention import (
    ancestor_mask,
    make_tiles,
    tree_attention_forward,
    tree_block_mask,
    use_tree_attention,
)
from rwml_lightning.functional.packed import output_head
from support.packed_models import SMALL, tiny_model

ZERO = torch.zeros(1)


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (1.0, 0.0), (0.0, 0.3)])
def test_clip_bounds_may_be_at_the_edge(bounds: tuple[float, float]) -> None:
    """A ratio of 1/2 and one of 3/2, both with an advantage of 1 and of -1."""
    low, high = bounds
    ratios = torch.tensor([0.5, 1.5])
    for sign in (1.0, -1.0):
        found = clipped_surrogate(ratios.log(), torch.zeros(2), torch.full((2,), sign), low, high).loss
        held = torch.tensor([max(0.5, 1 - low), min(1.5, 1 + high)])
        torch.testing.assert_close(found, -torch.minimum(ratios * sign, held * sign))


@pytest.mark.parametrize(("low", "high"), [(-0.01, 0.2), (1.01, 0.2), (0.2, -0.01)])
def test_clip_bounds_beyond_the_edge_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="clip_low must lie in"):
        clipped_surrogate(ZERO, ZERO, ZERO, low, high)


def test_a_constant_length_a_cap_and_a_temperature_may_be_below_one() -> None:
    weights = token_weights(torch.tensor([2, 2]), "constant", 0.5)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(truncated_importance_weights(ZERO, ZERO, cap=0.5).weights, ZERO + 0.5)
    hot = chunked_logprobs(ZERO[:, None], torch.ones(2, 1), torch.tensor([0]), chunk_size=1, temperature=0.5)
    torch.testing.assert_close(hot.logprobs, torch.tensor([0.5]).log())


def test_a_constant_group_gives_nothing_beside_one_that_varies() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 0.0], [0.7, 0.7, 0.7]])
    for normalisation in ("mean_std", "mean", "leave_one_out"):
        advantages = group_advantages(rewards, normalisation)
        assert advantages[0].tolist() == advantages[2].tolist() == [0, 0, 0]
        assert (advantages[1] != 0).all()


@pytest.mark.parametrize(("tokens", "chunk_size", "rows"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2])])
def test_logits_exist_once_and_for_one_chunk_in_each_pass(
    monkeypatch: pytest.MonkeyPatch, tokens: int, chunk_size: int, rows: list[int]
) -> None:
    seen: list[int] = []
    make = logprobs._logits
    monkeypatch.setattr(
        logprobs, "_logits", lambda hidden, *others: seen.append(len(hidden)) or make(hidden, *others)
    )
    hidden = torch.randn(tokens, 4).requires_grad_()
    values = chunked_logprobs(hidden, torch.randn(9, 4), torch.arange(tokens), chunk_size).logprobs
    assert seen == rows
    values.sum().backward()
    assert seen == rows * 2


@pytest.mark.parametrize("hidden_trained", [True, False])
@pytest.mark.parametrize("weight_trained", [True, False])
@pytest.mark.parametrize("bias_trained", [True, False])
def test_a_gradient_that_nobody_needs_is_not_computed(
    hidden_trained: bool, weight_trained: bool, bias_trained: bool
) -> None:
    """Three chunks: each makes its logits again, and one matrix product for each gradient of a matrix."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(7, 4), torch.randn(9, 4), torch.randn(9)
    trained = (hidden_trained, weight_trained, bias_trained)
    for tensor, needed in zip((hidden, weight, bias), trained, strict=True):
        tensor.requires_grad_(needed)
    if not any(trained):
        assert not chunked_logprobs(hidden, weight, torch.arange(7), 3, bias=bias).logprobs.requires_grad
        return
    loss = chunked_logprobs(hidden, weight, torch.arange(7), 3, bias=bias).logprobs.sum()
    with Calls() as calls:
        loss.backward()
    assert calls.counts["mm"] == 3 + 3 * hidden_trained + 3 * weight_trained
    assert calls.counts["zeros_like"] == weight_trained + bias_trained
    assert calls.counts["empty_like"] == hidden_trained
    assert calls.counts["sum"] == 3 * bias_trained
    expected = torch.autograd.grad(
        torch.log_softmax(hidden @ weight.T + bias, -1)[torch.arange(7), torch.arange(7)].sum(),
        [tensor for tensor in (hidden, weight, bias) if tensor.requires_grad],
    )
    found = [tensor.grad for tensor in (hidden, weight, bias) if tensor.requires_grad]
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("dtype", "difference", "accepted"),
    [
        (torch.float32, 5e-4, True),
        (torch.float32, 2e-3, False),
        (torch.float64, 2e-3, False),
        (torch.bfloat16, 0.4, True),
        (torch.bfloat16, 0.6, False),
    ],
)
def test_verification_tolerates_rounding_of_the_dtype(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, difference: float, accepted: bool
) -> None:
    model = tiny_model("llama").to(dtype)

    def shifted(*arguments: Any) -> Any:
        true = packed.packed_logprobs(model, packed.micro_batches(*arguments[1:3], max_tokens=1000)[0])
        return true._replace(logprobs=true.logprobs - difference)

    monkeypatch.setattr(packed, "plain_logprobs", shifted)
    if accepted:
        assert verify_packing(model) == pytest.approx(difference, rel=0.05)
    else:
        with pytest.raises(ValueError, match=r"change by .* nats"):
            verify_packing(model)
    assert verify_packing(model, tolerance=1.0) > 0  # a tolerance of one's own


@pytest.mark.parametrize("training", [True, False])
def test_verification_leaves_the_mode_as_it_was(training: bool) -> None:
    model = tiny_model("llama").train(training)
    verify_packing(model)
    assert model.training == training


def test_each_tree_and_each_run_of_a_tile_is_a_tile() -> None:
    tree = build_tree([[1] * 5, [2] * 5, [3, 4], [3, 5]])
    tiles = make_tiles(torch.from_numpy(tree.subtree_end), torch.float32, tile=4)
    assert tiles.rows == [4, 1, 4, 1, 3]
    assert tiles.key_counts == [4, 5, 4, 5, 3]


class Calls(TorchDispatchMode):
    """Counts operators that are really run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("checkpointing", "products", "activations"), [("selective", 3, 4), ("full", 5, 4)])
def test_what_checkpointing_computes_again(checkpointing: Any, products: int, activations: int) -> None:
    """The layer has three matrix products and two activations; the third product's own value is not needed for its gradient."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(inputs).sum(), inputs)
    with Calls() as calls:
        output = checkpoint(layer, inputs, **checkpointing_arguments(checkpointing))
        (found,) = torch.autograd.grad(output.sum(), inputs)
    torch.testing.assert_close(found, expected)
    assert calls.counts["addmm"] == products
    assert calls.counts["silu"] == activations


def test_no_checkpointing_has_no_arguments() -> None:
    with pytest.raises(ValueError, match="must be 'selective' or 'full', not 'none'"):
        checkpointing_arguments("none")


def test_tree_attention_is_refused_where_scores_are_changed() -> None:
    for name in ("softcap", "s_aux", "position_bias"):
        model = tiny_model("llama")
        assert use_tree_attention(model)
        layer = model.get_decoder().layers[0].self_attn
        states = torch.randn(1, 4, 3, 8, dtype=model.dtype)
        with pytest.raises(ValueError, match=f"tree attention does not support '{name}'"):
            tree_attention_forward(
                layer, states, states, states, torch.tensor([3, 3, 3]).view(1, 1, 1, 3), **{name: 1.0}
            )


def test_new_tensors_lie_where_the_others_do() -> None:
    """With another default device, a tensor that is made without naming one meets those of the model and fails."""
    sequences, trained_from = [[1, 2, 3, 4], [1, 2, 5], [6, 7, 8]], [2, 1, 1]
    for tree in (True, False):
        model = tiny_model("llama")
        if tree:
            use_tree_attention(model)
        expected = plain_logprobs(model, sequences, trained_from, 0.7)
        (micro,) = micro_batches(sequences, trained_from, 100)
        with torch.device("meta"):
            torch.testing.assert_close(plain_logprobs(model, sequences, trained_from, 0.7), expected)
            values = packed_logprobs(model, micro, 0.7)
            values.logprobs.sum().backward()
        torch.testing.assert_close(values, expected)
        assert all(parameter.grad.device.type == "cpu" for parameter in model.parameters())
    subtree_end = micro.subtree_end
    with torch.device("meta"):
        assert ancestor_mask(subtree_end).device.type == "cpu"
        block_mask = tree_block_mask(subtree_end)
    assert block_mask.kv_num_blocks.device.type == "cpu"


def test_a_head_with_a_bias_and_a_scale_is_taken_whole() -> None:
    config = PhiConfig(**{**SMALL, "resid_pdrop": 0.0})
    torch.manual_seed(0)
    model = PhiForCausalLM(config).double()
    with torch.no_grad():
        model.lm_head.bias.normal_()
    head = output_head(model)
    assert head.weight is model.lm_head.weight
    assert head.bias is model.lm_head.bias
    assert verify_packing(model) < 1e-6


def test_packed_logits_exist_for_a_chunk_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    make = logprobs._logits
    monkeypatch.setattr(
        logprobs, "_logits", lambda hidden, *others: seen.append(len(hidden)) or make(hidden, *others)
    )
    (micro,) = micro_batches([list(range(1, 12))], [1], 100)
    packed_logprobs(tiny_model("llama"), micro, chunk_size=4)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3, dtype=torch.bool)])
def test_other_calls_reach_sdpa_as_they_are(monkeypatch: pytest.MonkeyPatch, mask: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *args, **kwargs: calls.append((*args, kwargs))
    )
    module, states = nn.Module(), torch.zeros(1, 2, 3, 4)
    tree_attention_forward(module, states, states, states, mask, 0.3, 0.1, is_causal=False)
    assert calls == [
        (module, states, states, states, mask, {"dropout": 0.1, "scaling": 0.3, "is_causal": False})
    ]


def test_on_a_gpu_every_layer_reaches_flex_attention_with_one_block_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: of the states nothing is asked but where they lie."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def flex(*args: Any, **kwargs: Any) -> tuple[str, str]:
        calls.append((args, kwargs))
        return "output", "sums"

    monkeypatch.setattr(attention, "flex_attention_forward", flex)
    module, query, key, value = nn.Module(), SimpleNamespace(is_cuda=True), object(), object()
    ends = [torch.from_numpy(build_tree(s).subtree_end) for s in ([[1] * 200, [2] * 90], [[1] * 290])]
    masks = [end.view(1, 1, 1, -1) for end in ends]
    states: Any = (query, key, value)
    for mask in (masks[0], masks[0], masks[1]):
        assert tree_attention_forward(module, *states, mask, 0.3, 0.1, softcap=5.0) == ("output", None)
    for args, kwargs in calls:
        assert args[:4] == (module, query, key, value)
        assert kwargs == {"scaling": 0.3, "dropout": 0.1, "softcap": 5.0}
    found = [args[4] for args, _ in calls]
    assert found[0] is found[1]
    for block_mask, end in zip(found[1:], ends, strict=True):
        assert torch.equal(block_mask.to_dense(), tree_block_mask(end).to_dense())
        row, column = torch.meshgrid(torch.arange(290), torch.arange(290), indexing="ij")
        assert torch.equal(block_mask.mask_mod(None, None, row, column), ancestor_mask(end))


def test_tree_attention_scales_and_drops_as_asked() -> None:
    """Without a scale the default is 1 / sqrt(width); everything dropped leaves nothing."""
    torch.manual_seed(0)
    module = nn.Module()
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind(0)
    mask = torch.full((1, 1, 1, 5), 5)  # one chain
    for scaling in (None, 0.1):
        found, _ = tree_attention_forward(module, query, key, value, mask, scaling)
        expected = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling
        )
        torch.testing.assert_close(found, expected.transpose(1, 2))
    dropped, _ = tree_attention_forward(module, query, key, value, mask, None, 0.999999)
    assert (dropped == 0).all()


def test_a_long_run_is_cut_into_tiles_of_equal_size() -> None:
    tree = build_tree([[1] * 9])
    assert make_tiles(torch.from_numpy(tree.subtree_end), torch.float32, tile=2).rows == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("block", [1, 4])
def test_the_block_mask_is_the_dense_mask_by_blocks(block: int) -> None:
    """Many rows of blocks, the last one padded: which key blocks are seen in part, and which whole."""
    sequences = [[1] * 9, [1] * 9 + [2, 3], [1] * 4 + [5, 6, 7], [8] * 3]
    subtree_end = torch.from_numpy(build_tree(sequences).subtree_end)
    nodes = len(subtree_end)
    mask = tree_block_mask(subtree_end, block)
    assert (mask.BLOCK_SIZE, mask.seq_lengths) == ((block, block), (nodes, nodes))
    lists = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    assert {part.dtype for part in lists} == {torch.int32}  # what the kernel reads
    dense = ancestor_mask(subtree_end)
    for row in range(-(-nodes // block)):
        rows = slice(row * block, (row + 1) * block)
        part = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist()
        whole = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()
        assert not set(part) & set(whole)
        for column in range(-(-nodes // block)):
            cell = dense[rows, column * block : (column + 1) * block]
            assert cell.any() <= (column in part + whole)
            assert (column not in whole) or cell.all()
            assert (column in whole) or not (cell.all() and cell.shape == (block, block))
    assert mask.full_kv_num_blocks.sum() > 0
