"""How long a sequence may be: attention windows, and rotary embeddings that change with the longest position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
)

from rwml_lightning.functional import (
    micro_batches,
    packed_logprobs,
    plain_logprobs,
    use_tree_attention,
    verify_packing,
)
from rwml_lightning.functional.context import context_limit, rope_limit
from rwml_lightning.generation import HFGenerator, VLLMGenerator
from rwml_lightning.generation.vllm_setup import check_positions
from rwml_lightning.schema import Sampling

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 8.0, 16.0, 32.0],
}
ORIGINAL = 32


def longrope_config() -> PreTrainedConfig:
    return Phi3Config(
        **SHAPE,
        rope_parameters=dict(LONGROPE),
        original_max_position_embeddings=ORIGINAL,
        sliding_window=None,
    )


def dynamic_config() -> PreTrainedConfig:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    return LlamaConfig(**{**SHAPE, "max_position_embeddings": ORIGINAL}, rope_parameters=rope)


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_tree_attention(model)
    return model


@pytest.mark.parametrize(
    ("config", "name", "tokens"),
    [
        (LlamaConfig(**SHAPE), None, None),
        (MistralConfig(**SHAPE, sliding_window=24), "sliding_window", 24),
        (Qwen2MoeConfig(**SHAPE), None, None),  # writes 0 for no window
        (Qwen3Config(**SHAPE, sliding_window=24, use_sliding_window=True, max_window_layers=8), None, None),
        (
            Qwen3Config(**SHAPE, sliding_window=24, use_sliding_window=True, max_window_layers=0),
            "sliding_window",
            24,
        ),
        (longrope_config(), "original_max_position_embeddings", ORIGINAL),
        (dynamic_config(), "max_position_embeddings", ORIGINAL),
    ],
)
def test_limits_of_configs(config: PreTrainedConfig, name: str | None, tokens: int | None) -> None:
    limit = context_limit(config)
    assert (limit and limit.name, limit and limit.tokens) == (name, tokens)


@pytest.mark.parametrize("make_config", [longrope_config, dynamic_config])
def test_a_sequence_beyond_the_rope_limit_changes_no_neighbour(make_config: Any) -> None:
    """In one row with a long sequence, the short one was up to 3.6 (LongRoPE) and 0.17 nats from what it is alone."""
    model = tiny_model(make_config())
    limit = rope_limit(model.config)
    assert limit is not None
    short, long = list(range(3, 13)), [*range(30, 60), *range(20, 30)]
    (micro,) = micro_batches([short, long], [1, 1], 100)
    with pytest.raises(
        ValueError, match=rf"39 tokens is longer than this model's {limit.name} of 32, .* change for all"
    ):
        packed_logprobs(model, micro)
    (micro,) = micro_batches([short, long[: ORIGINAL + 1]], [1, 1], 100)
    packed = packed_logprobs(model, micro).logprobs[: len(short) - 1]
    torch.testing.assert_close(packed, plain_logprobs(model, [short], [1]).logprobs, atol=1e-5, rtol=0)


def test_generators_refuse_a_context_beyond_the_rope_limit(tmp_path: Any) -> None:
    model = tiny_model(longrope_config())
    generator = HFGenerator(end_token_ids=())
    generator.attach(model)
    generator.generate([[5] * 20], Sampling(12), [[0]])
    with pytest.raises(ValueError, match="33 tokens exceed the original_max_position_embeddings of 32"):
        generator.generate([[5] * 20], Sampling(13), [[0]])
    model.save_pretrained(tmp_path)
    engine = VLLMGenerator(str(tmp_path), end_token_ids=(2,), max_model_len=33)
    with pytest.raises(ValueError, match=r"max_model_len is 33; .* set max_model_len to at most 32"):
        engine.start()


@pytest.mark.parametrize("make_config", [longrope_config, dynamic_config])
def test_vllm_gets_no_context_with_other_positions(make_config: Any) -> None:
    """Left out, vLLM takes a dynamic RoPE's ``factor`` times the original length: 128 tokens."""
    for context, said in ((None, "not set"), (ORIGINAL + 1, "33")):
        with pytest.raises(ValueError, match=rf"max_model_len is {said}; .* set max_model_len to at most 32"):
            check_positions(make_config(), context)
    check_positions(make_config(), ORIGINAL)


def test_vllm_gets_no_rope_that_it_scales_everywhere() -> None:
    """With vLLM a tiny model was 0.23 nats a token from transformers, and 6e-7 without the key."""
    config = dynamic_config()
    config.rope_parameters["max_trained_positions"] = ORIGINAL
    check_positions(config, ORIGINAL)
    config.rope_parameters["max_trained_positions"] = ORIGINAL // 2
    with pytest.raises(
        ValueError, match="its max_trained_positions of 16, and the trainer does not: use HFGenerator"
    ):
        check_positions(config, ORIGINAL)


def test_masks_by_place_in_the_row_are_found_out() -> None:
    """GPT-Neo's window hides keys by their place in the row: 0.01 nats in a row of more than 256 tokens."""
    config = GPTNeoConfig(
        vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=512, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot be trained as a prefix tree: its log-probabilities change"):
        verify_packing(tiny_model(config))
