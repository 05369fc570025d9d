"""Adapters of a policy: which vLLM takes beside the base weights, and what it is asked for; vLLM itself is a stand-in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import VLLMGenerator
from rwml_lightning.generation.base import UnsupportedAdaptersError
from rwml_lightning.generation.vllm_adapters import Adapters, adapters_of
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import LoRA
from rwml_lightning.modules.adapters import wrap
from rwml_lightning.weights import adapter_tensors, base_tensors
from support.fake_vllm import FakeVLLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVLLM:
    return FakeVLLM(monkeypatch)


def make_policy(folder: Path, **lora: Any) -> Any:
    torch.manual_seed(0)
    policy = wrap(load_causal_lm(folder), LoRA(**{"rank": 3, "alpha": 6, **lora}))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return policy


def digest_of(tensors: Iterator[tuple[str, torch.Tensor]]) -> str:
    return combine_digests(tensor_digest(*named) for named in tensors)


ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.mark.parametrize(
    ("rank", "reserved"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (257, 320), (321, 512), (512, 512)]
)
def test_the_engine_reserves_the_next_rank_that_it_has(rank: int, reserved: int) -> None:
    assert Adapters(rank, 6, ("q_proj",)).engine_arguments == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": reserved,
        "lora_target_modules": ["q_proj"],
    }


def test_the_shape_of_adapters_is_read_from_the_policy(tiny_model: Path) -> None:
    assert adapters_of(load_causal_lm(tiny_model)) is None
    assert adapters_of(make_policy(tiny_model)) == Adapters(3, 6, ALL_LINEAR)
    some = make_policy(tiny_model, rank=1, alpha=9, target_modules=["v_proj", "q_proj"])
    assert adapters_of(some) == Adapters(1, 9, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("kind", "more", "lora", "reason"),
    [
        ("llama", {}, {"target_modules": ["embed_tokens"]}, "model.embed_tokens is not a linear layer"),
        ("llama", {"tie_word_embeddings": False}, {"target_modules": ["lm_head"]}, "lm_head is the output head"),
        ("llama", {}, {"rank": 513}, "their rank is 513, and vLLM's limit is 512"),
        ("qwen3_moe", {"num_experts": 2, "moe_intermediate_size": 8}, {}, "the model has experts"),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2}, {}, "transformer.h.0.attn.c_attn is not a linear layer"),
    ],
)  # fmt: skip
def test_adapters_that_vllm_cannot_take_have_a_reason(
    kind: str, more: dict[str, Any], lora: dict[str, Any], reason: str
) -> None:
    sizes = {"vocab_size": 64} if kind == "gpt2" else SIZES
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **more}))
        policy = wrap(model, LoRA(**{"rank": 2, **lora}))
    with pytest.raises(UnsupportedAdaptersError, match=f"^{reason}$"):
        adapters_of(policy)


def test_adapters_of_several_ranks_are_merged(tiny_model: Path) -> None:
    config = LoraConfig(r=4, rank_pattern={"q_proj": 2}, target_modules=["q_proj", "v_proj"])
    with pytest.raises(UnsupportedAdaptersError, match="their ranks or scales differ"):
        adapters_of(get_peft_model(load_causal_lm(tiny_model), config))


def test_the_engine_gets_the_adapters_alone(vllm: FakeVLLM, tiny_model: Path) -> None:
    policy, generator = make_policy(tiny_model), VLLMGenerator(str(tiny_model))
    assert generator.keep_adapters(policy)
    assert vllm.llm.arguments["enable_lora"]
    assert vllm.llm.arguments["lora_target_modules"] == list(ALL_LINEAR)
    generator.update_weights(base_tensors(policy), 1)
    assert generator.base_digest == generator.weights_digest == digest_of(base_tensors(policy))
    generator.score([[8, 16]])
    assert vllm.llm.lora_request is None  # the base alone
    for number, version in ((1, 1), (2, 7)):
        vllm.llm.calls.clear()
        generator.update_adapters(adapter_tensors(policy), version)
        folder = vllm.llm.files[0].parent
        assert vllm.llm.calls == [("load_adapters", str(folder), number), ("reset_prefix_cache",)]
        sent = dict(adapter_tensors(policy))
        assert vllm.llm.adapters.keys() == sent.keys()
        assert all(torch.equal(vllm.llm.adapters[name], tensor) for name, tensor in sent.items())
        assert vllm.llm.adapter_config == {
            "peft_type": "LORA",
            "r": 3,
            "lora_alpha": 6,
            "target_modules": list(ALL_LINEAR),
        }
        assert not folder.exists()
        assert generator.policy_version == version
        assert generator.weights_digest == digest_of(iter([*base_tensors(policy), *adapter_tensors(policy)]))
        assert generator.base_digest == digest_of(base_tensors(policy))
        generator.score([[8, 16]])
        assert vllm.llm.lora_request == (f"policy-{number}", number, str(folder))
    assert generator.keep_adapters(policy)
    generator.update_weights(base_tensors(policy), 8)
    generator.score([[8, 16]])
    assert vllm.llm.lora_request is None
    assert len(vllm.llms) == 1
    generator.close()
    assert (generator.base_digest, generator.weights_digest) == (None, None)


def test_the_engine_starts_again_for_adapters_of_another_shape(vllm: FakeVLLM, tiny_model: Path) -> None:
    generator = VLLMGenerator(str(tiny_model))
    generator.start()
    assert not generator.keep_adapters(load_causal_lm(tiny_model))
    assert len(vllm.llms) == 1
    for number, rank in enumerate((3, 3, 9)):
        assert generator.keep_adapters(make_policy(tiny_model, rank=rank))
        assert len(vllm.llms) == 2 + (number == 2)
    assert vllm.llm.arguments["max_lora_rank"] == 16


def test_the_run_says_why_adapters_are_merged(
    vllm: FakeVLLM, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.starts_with_adapters = False
    generator = VLLMGenerator(str(tiny_model))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not generator.keep_adapters(make_policy(tiny_model))
    (line,) = caplog.messages
    assert line.startswith("vLLM gets the policy with merged adapters")
    assert line.endswith("this architecture has no LoRA")
    generator.start()
    assert "enable_lora" not in vllm.llm.arguments


def test_adapters_are_merged_if_asked_for_or_needed(
    vllm: FakeVLLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model)
    assert not VLLMGenerator(str(tiny_model), merge_adapters=True).keep_adapters(policy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not VLLMGenerator(str(tiny_model), dtype="float32").keep_adapters(policy)
    assert not vllm.llms
    assert VLLMGenerator(str(tiny_model), dtype="bfloat16").keep_adapters(policy)


def test_an_engine_without_adapters_serves_on(vllm: FakeVLLM, tiny_model: Path) -> None:
    generator = VLLMGenerator(str(tiny_model))
    generator.start()
    assert not generator.keep_adapters(make_policy(tiny_model, target_modules=["embed_tokens"]))
    assert vllm.process.alive
    generator.score([[8, 16]])
    assert len(vllm.llms) == 1


def test_refused_adapters_are_no_weights(vllm: FakeVLLM, tiny_model: Path) -> None:
    policy, generator = make_policy(tiny_model), VLLMGenerator(str(tiny_model))
    generator.keep_adapters(policy)
    generator.update_weights(base_tensors(policy), 1)
    vllm.llm.refusal = "no such layer"
    with pytest.raises(UnsupportedAdaptersError, match="no such layer"):
        generator.update_adapters(adapter_tensors(policy), 2)
    assert (generator.policy_version, generator.weights_digest) == (1, None)
    generator.refuse_adapters("no such layer")
    assert generator.base_digest is None
    assert not generator.keep_adapters(policy)


def test_the_base_stays_in_an_engine_that_sleeps(vllm: FakeVLLM, tiny_model: Path) -> None:
    vllm.on_cpu = False
    policy, generator = make_policy(tiny_model), VLLMGenerator(str(tiny_model), enable_sleep_mode=True)
    generator.keep_adapters(policy)
    generator.update_weights(base_tensors(policy), 1)
    generator.update_adapters(adapter_tensors(policy), 1)
    vllm.llm.calls.clear()
    generator.sleep()
    assert (generator.weights_digest, generator.base_digest) == (None, digest_of(base_tensors(policy)))
    generator.update_adapters(adapter_tensors(policy), 2)
    names = [call[:2] if call[0] in ("sleep", "wake_up") else call[:1] for call in vllm.llm.calls]
    assert names == [
        ("sleep", 1),
        ("wake_up", "weights"),
        ("load_adapters",),
        ("wake_up", "kv_cache"),
        ("reset_prefix_cache",),
    ]
    assert not generator.asleep


def test_a_failed_update_leaves_no_engine(vllm: FakeVLLM, tiny_model: Path) -> None:
    policy, generator = make_policy(tiny_model), VLLMGenerator(str(tiny_model))
    generator.keep_adapters(policy)
    vllm.llm.digests = ["1", "2"]
    with pytest.raises(RuntimeError, match="workers did not all take the same weights"):
        generator.update_adapters(adapter_tensors(policy), 1)
    assert not vllm.process.alive
    assert generator.policy_version == 0
