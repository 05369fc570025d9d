"""The whole model travels: buffers as well as parameters, adapters of every kind merged, under the names wanted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from rwml_lightning.generation import HFGenerator
from rwml_lightning.models import load_causal_lm, load_skeleton
from rwml_lightning.modules import LoRA
from rwml_lightning.modules.adapters import trial_adapters
from rwml_lightning.modules.exporting import export_policy
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.weights import (
    _adapted_layer,
    adapter_tensors,
    base_model,
    base_name,
    base_tensors,
    base_versions,
    by_layer,
    cast_weights,
    checkpoint_tensors,
    model_tensors,
)

IDS = torch.tensor([[5, 9, 40, 41, 7, 60]])
SHAPE = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "deepseek_v3": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8, "num_key_value_heads": 4,
    },
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 256},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}  # fmt: skip


@pytest.fixture(params=list(ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A model of random weights, every persistent buffer off its default."""
    torch.manual_seed(0)
    kept = (
        SHAPE
        if request.param != "gpt2"
        else {k: SHAPE[k] for k in SHAPE if not k.startswith(("num_", "hid"))}
    )
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(request.param, **{**kept, **ARCHITECTURES[request.param]})
    )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in parameters:
                tensor.add_(torch.rand_like(tensor) * 0.5)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def make_policy(folder: Path, lora: LoRA | None) -> Any:
    """A policy whose tensors, or adapters, are not those that it began as."""
    policy = load_policy(str(folder), lora=lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            if lora is None or "lora_" in name:
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return policy.eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("lora", [None, LoRA(4, 8)], ids=["full", "lora"])
def test_export_and_copy_compute_what_the_policy_computes(
    folder: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, lora: LoRA | None
) -> None:
    policy = make_policy(folder, lora)
    expected = logits_of(policy)
    assert (expected - logits_of(load_causal_lm(folder))).abs().max() > 0.01
    export_policy(policy, tiny_tokenizer, tmp_path / "out", IDS[0].tolist())
    torch.testing.assert_close(logits_of(load_causal_lm(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)
    generator = HFGenerator(str(folder), device="cpu")
    generator.update_weights(model_tensors(policy), 1)
    torch.testing.assert_close(logits_of(generator._started()), expected, atol=1e-5, rtol=1e-5)


def test_adapters_are_merged_as_peft_merges_them(folder: Path) -> None:
    policy = make_policy(folder, LoRA(4, 8))
    before = copy.deepcopy(policy.state_dict())
    ours = dict(model_tensors(policy))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    merged = copy.deepcopy(policy).merge_and_unload()
    tied = set(merged.all_tied_weights_keys) & merged.state_dict().keys()
    assert ours.keys() == merged.state_dict().keys() - tied
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], atol=1e-6, rtol=1e-6)


def test_base_and_adapters_are_apart(folder: Path) -> None:
    policy = make_policy(folder, LoRA(4, 8))
    plain = dict(model_tensors(load_causal_lm(folder)))
    base = dict(base_tensors(policy))
    assert base.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items())
    adapters = dict(adapter_tensors(policy))
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert adapters.keys() == {name.replace(".default.", ".") for name in trained}
    for name, p in trained.items():
        assert torch.equal(adapters[name.replace(".default.", ".")], p)
    assert not any(tensor.requires_grad for tensor in [*base.values(), *adapters.values()])
    plain_model = load_causal_lm(folder)
    assert not list(adapter_tensors(plain_model))
    assert dict(base_tensors(plain_model)).keys() == plain.keys()


def test_a_change_of_the_base_is_seen(tiny_model: Path) -> None:
    policy = make_policy(tiny_model, LoRA(4, 8))
    before = base_versions(policy)
    assert len(before) == len(dict(base_tensors(policy)))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    logits_of(policy)
    assert base_versions(policy) == before
    policy.load_state_dict(policy.state_dict())
    assert base_versions(policy) != before


def test_adapters_outside_of_a_language_model_are_merged_too() -> None:
    """Layers at the top have names of one part; each scale is alpha / r."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(2, 2)})
    b = model["b"].weight.detach().clone()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["a"], init_lora_weights=False)
    inject_adapter_in_model(config, model)
    layer: Any = model["a"]
    expected = layer.base_layer.weight + 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    tensors = dict(model_tensors(model))
    assert list(tensors) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    torch.testing.assert_close(tensors["a.weight"], expected)
    assert torch.equal(tensors["a.bias"], layer.base_layer.bias)
    assert torch.equal(tensors["b.weight"], b)


def test_names_are_those_of_the_files(folder: Path) -> None:
    files = load_file(folder / "model.safetensors")
    policy = load_policy(str(folder), lora=LoRA(4, 8))
    for model in (policy, load_skeleton(folder)):
        spelt = dict(checkpoint_tensors(model, model_tensors(policy)))
        assert spelt.keys() == files.keys()
        assert all(torch.equal(spelt[name], files[name]) for name in files)


def test_tensors_are_respelt_a_layer_at_a_time(folder: Path) -> None:
    """The whole of a large model is never held twice."""
    model = load_skeleton(folder)
    taken: list[str] = []

    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in model_tensors(model):
            taken.append(name)
            yield name, tensor

    next(checkpoint_tensors(model, watched()))
    assert 0 < len(taken) < len(dict(model_tensors(model))) // 2


def test_neighbours_of_a_layer_come_together() -> None:
    names = ["wte.weight", "h.0.a", "h.0.experts.1.b", "h.1.a", "h.10.a", "h.10.b", "norm.weight", "head"]
    groups = [[name for name, _ in group] for group in by_layer((name, torch.ones(1)) for name in names)]
    assert groups == [names[:1], names[1:3], names[3:4], names[4:6], names[6:]]


def test_names_are_without_what_peft_puts_into_them() -> None:
    assert (
        base_name("base_model.model.model.layers.0.q_proj.base_layer.weight")
        == "model.layers.0.q_proj.weight"
    )
    assert base_name("model.base_model.model.weight") == "model.base_model.model.weight"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_that_merge_are_taken_as_they_were(folder: Path, dtype: Any) -> None:
    torch.manual_seed(3)
    policy = load_policy(str(folder), dtype, LoRA(4, 8))
    adapters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in adapters)
    assert all(p.dtype == torch.float32 for p in adapters.values())  # a low-precision base or not
    assert not any(p.any() for name, p in adapters.items() if "lora_B" in name)
    expected = logits_of(load_causal_lm(folder, dtype))
    torch.testing.assert_close(logits_of(policy), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_that_cannot_be_merged_are_refused_at_once(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, tied: bool, dtype: Any
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SHAPE, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lora = LoRA(4, 8, target_modules=["embed_tokens", "q_proj"])
    if tied:
        with pytest.raises(
            ValueError, match=r"adapters on model\.embed_tokens cannot be merged .*model\.lora\.target_mo"
        ):
            load_policy(str(tmp_path), dtype, lora)
    else:
        load_policy(str(tmp_path), dtype, lora)


@pytest.mark.parametrize("lora", [None, LoRA(4, 8)])
def test_tied_tensors_come_once(tiny_model: Path, lora: LoRA | None) -> None:
    names = [name for name, _ in model_tensors(load_policy(str(tiny_model), lora=lora))]
    assert names == [name for name, _ in load_causal_lm(tiny_model).named_parameters()]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("lora", [None, LoRA(4, 8)], ids=["full", "lora"])
def test_shards_are_gathered_and_merged(folder: Path, lora: LoRA | None) -> None:
    policy = make_policy(folder, lora)
    parts: list[Any] = [model_tensors, base_tensors, adapter_tensors]
    expected = [{name: tensor.clone() for name, tensor in part(policy)} for part in parts]
    mesh = init_device_mesh("cpu", (1,))
    for layer in base_model(policy).get_decoder().children():
        if isinstance(layer, torch.nn.ModuleList):
            for block in layer:
                fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    assert any(isinstance(tensor, DTensor) for tensor in policy.state_dict().values())
    for part, whole in zip(parts, expected, strict=True):
        ours = dict(part(policy))
        assert ours.keys() == whole.keys()
        for name, tensor in ours.items():
            assert not isinstance(tensor, DTensor)
            torch.testing.assert_close(tensor, whole[name])
    if lora is not None:
        before = {name: tensor.clone() for name, tensor in adapter_tensors(policy)}
        versions = base_versions(policy)
        with trial_adapters(policy):
            tried = {name: tensor.clone() for name, tensor in adapter_tensors(policy)}
        changed = {name for name, tensor in tried.items() if not torch.equal(tensor, before[name])}
        assert changed
        assert changed < {name for name in tried if ".lora_B." in name}
        assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_tensors(policy))
        assert base_versions(policy) == versions


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_parameters_are_cast_and_buffers_are_not(folder: Path, lora: LoRA | None) -> None:
    policy = load_policy(str(folder), lora=lora)
    full = dict(model_tensors(policy))
    cast = dict(cast_weights(policy, full.items(), torch.bfloat16))
    assert list(cast) == list(full)
    buffers = {base_name(name) for name, _ in base_model(policy).named_buffers()}
    for name, tensor in cast.items():
        assert tensor.dtype == (full[name].dtype if name in buffers else torch.bfloat16), name
        assert torch.equal(tensor, full[name].to(tensor.dtype))


def test_precise_parameters_and_narrow_ones_stay(tiny_model: Path) -> None:
    model = load_causal_lm(tiny_model)
    base_model(model)._keep_in_fp32_modules_strict = {"lm_head", "norm"}
    dtypes = {name: t.dtype for name, t in cast_weights(model, model_tensors(model), torch.bfloat16)}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        name for name in dtypes if {"lm_head", "norm"} & set(name.split("."))
    }
    half = model.to(torch.bfloat16)
    same = cast_weights(half, model_tensors(half), torch.float32)
    assert {tensor.dtype for _, tensor in same} == {torch.bfloat16}  # more bytes would say no more


def test_the_outermost_adapted_layer_holds_a_tensor() -> None:
    adapted = {"head", "a.b", "a.b.c"}
    names = ("head.weight", "a.b.c.weight", "a.b.weight", "a.x.weight", "head", "weight")
    assert [_adapted_layer(name, adapted) for name in names] == ["head", "a.b", "a.b", None, None, None]
