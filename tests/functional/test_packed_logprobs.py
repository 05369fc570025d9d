"""Packed log-probabilities against the plain padded batch: values and gradients, on several architectures.

Models are float64, but their norms and rotary embeddings compute in float32. Values agree to 1e-6 nats, gradients to
1e-5 (of the largest entry where that is above 1), far below what a wrong mask, position or index would change.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM as CausalLM
from transformers import (
    BloomConfig,
    FalconConfig,
    GptOssConfig,
    Llama4TextConfig,
    MistralConfig,
    OPTConfig,
    Qwen3NextConfig,
)

from rwml_lightning.functional import (
    checkpointing_arguments,
    clipped_surrogate,
    group_advantages,
    has_tree_attention,
    kl_penalty,
    micro_batches,
    packed_logprobs,
    plain_logprobs,
    token_weights,
    use_tree_attention,
    verify_packing,
)
from rwml_lightning.functional.packed import causal_lm
from support.packed_models import CONFIGS, SMALL, VOCABULARY, tiny_model

BLOOM = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
PROMPT = [5, 6, 7, 8, 9, 10, 11]
SEQUENCES = [
    [*PROMPT, 12, 13, 14],
    [*PROMPT, 12, 13, 15, 16],
    [*PROMPT, 12, 13, 14],  # a duplicate
    [*PROMPT, 12, 13],  # a prefix of others
    [*PROMPT[:3], 20, 21, 22, 23],  # another prompt with the same beginning
    [25, 26],  # the shortest there can be
    [*PROMPT, 17],
]
TRAINED_FROM = [7, 7, 5, 8, 4, 1, 7]


def packed_in_micro_batches(model, sequences, trained_from, max_tokens, **options):
    """Log-probabilities and entropies as dictionaries from (sequence, token)."""
    logprobs, entropy = {}, {}
    for micro in micro_batches(sequences, trained_from, max_tokens):
        keys = list(zip(micro.sequence_index.tolist(), micro.token_index.tolist(), strict=True))
        values = packed_logprobs(model, micro, **options)
        assert not logprobs.keys() & set(keys)
        logprobs.update(zip(keys, values.logprobs, strict=True))
        entropy.update(zip(keys, values.entropy, strict=True))
    return logprobs, entropy


def assert_equal_to_plain(model, sequences, trained_from, max_tokens=1000, temperature=0.7, tolerance=1e-6):
    parameters = [p for p in model.parameters() if p.requires_grad]
    plain = plain_logprobs(model, sequences, trained_from, temperature)
    keys = [(b, t) for b, first in enumerate(trained_from) for t in range(first, len(sequences[b]))]
    coefficients = torch.randn(2, len(keys), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    logprobs, entropy = packed_in_micro_batches(
        model, sequences, trained_from, max_tokens, temperature=temperature, chunk_size=4
    )
    assert logprobs.keys() == set(keys)
    packed = torch.stack([torch.stack([values[key] for key in keys]) for values in (logprobs, entropy)])
    torch.testing.assert_close(packed, torch.stack(plain), atol=tolerance, rtol=0)

    expected = torch.autograd.grad((coefficients * torch.stack(plain)).sum(), parameters)
    actual = torch.autograd.grad((coefficients * packed).sum(), parameters)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=10 * tolerance * max(1.0, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_plain_with_a_dense_mask(name):
    implementation = "eager" if name == "gemma2" else "sdpa"  # SDPA has no softcap on the scores
    assert_equal_to_plain(tiny_model(name, implementation), SEQUENCES, TRAINED_FROM)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"gemma2"}))
def test_packed_equals_plain_with_tree_attention(name):
    model = tiny_model(name)
    assert use_tree_attention(model)
    assert has_tree_attention(model)
    assert_equal_to_plain(model, SEQUENCES, TRAINED_FROM)


@pytest.mark.parametrize("max_tokens", [1, 9, 12])
def test_micro_batches_together_equal_one_batch(max_tokens):
    model = tiny_model("llama")
    use_tree_attention(model)
    assert_equal_to_plain(model, SEQUENCES, TRAINED_FROM, max_tokens)


def test_rows_longer_than_a_tile():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (600,), generator=generator).tolist()
    sequences = [tokens[:200] + tokens[start : start + 60] for start in range(200, 500, 60)]
    sequences += [tokens[:100] + tokens[500:600], tokens[300:310]]
    model = tiny_model("llama")
    use_tree_attention(model)
    assert_equal_to_plain(model, sequences, [200] * 5 + [100, 1])


@st.composite
def steps(draw):
    """Sequences over few tokens, so that they share and repeat a lot, with at least one trained token each."""
    sequences = draw(st.lists(st.lists(st.integers(3, 5), min_size=2, max_size=8), min_size=1, max_size=8))
    return sequences, [draw(st.integers(1, len(sequence) - 1)) for sequence in sequences]


LLAMA = tiny_model("llama")
use_tree_attention(LLAMA)


@pytest.mark.heavy
@settings(max_examples=25, deadline=None)
@given(steps(), st.sampled_from([6, 1000]))
def test_packed_equals_plain_on_random_forests(step, max_tokens):
    assert_equal_to_plain(LLAMA, *step, max_tokens)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("tree_attention", [False, True])
def test_gradient_checkpointing(tree_attention, checkpointing):
    model = tiny_model("qwen2")
    if tree_attention:
        use_tree_attention(model)
    model.gradient_checkpointing_enable(checkpointing_arguments(checkpointing))
    assert_equal_to_plain(model, SEQUENCES, TRAINED_FROM)


@pytest.mark.parametrize("tree_attention", [False, True])
def test_lora(tree_attention):
    model = tiny_model("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).double()
    if tree_attention:
        use_tree_attention(causal_lm(wrapped))
    assert {name.split(".")[-3] for name, p in wrapped.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert_equal_to_plain(wrapped, SEQUENCES, TRAINED_FROM)
    assert verify_packing(wrapped) < 1e-6


def test_float32_values():
    """Float32 as in training on a CPU: 1e-5 nats."""
    model = tiny_model("qwen3").float()
    use_tree_attention(model)
    (micro,) = micro_batches(SEQUENCES, TRAINED_FROM, 1000)
    packed = packed_logprobs(model, micro)
    assert packed.logprobs.dtype == torch.float32
    torch.testing.assert_close(packed, plain_logprobs(model, SEQUENCES, TRAINED_FROM), atol=1e-5, rtol=0)


def test_bfloat16_model():
    """Within 0.5 nats, the default tolerance of ``verify_packing`` there."""
    model = tiny_model("llama").bfloat16()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    use_tree_attention(model)
    assert verify_packing(model) < 0.5


def test_one_batch_of_eight_equals_eight_of_one():
    """A whole GRPO loss, weights over the step: gradients of accumulated micro-batches add up to the one batch's."""
    model = tiny_model("llama")
    use_tree_attention(model)
    sequences = [[*PROMPT[:4], 12 + member, *range(member + 1, 1, -1)] for member in range(8)]
    trained_from = [4] * 8
    advantages = group_advantages(torch.arange(8.0, dtype=torch.float64)[None])[0]
    weights = token_weights(torch.tensor([len(s) - 4 for s in sequences])).double()

    def gradients(max_tokens):
        model.zero_grad()
        batches = micro_batches(sequences, trained_from, max_tokens)
        for micro in batches:
            logprobs, entropy = packed_logprobs(model, micro)
            loss = clipped_surrogate(logprobs, logprobs, advantages[micro.sequence_index]).loss
            loss = loss + 0.1 * kl_penalty(logprobs, logprobs.detach() + 0.3) - 0.01 * entropy
            (weights[micro.sequence_index] * loss).sum().backward()
        return len(batches), [p.grad.clone() for p in model.parameters()]

    (one, expected), (eight, actual) = gradients(1000), gradients(1)
    assert (one, eight) == (1, 8)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_generation_is_untouched_by_tree_attention():
    model = tiny_model("llama").eval()
    prompt = torch.tensor([PROMPT, [0, 0, *PROMPT[:5]]])
    options = {
        "attention_mask": (prompt > 0).long(),
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
    }
    expected = model.generate(prompt, **options)
    use_tree_attention(model)
    assert torch.equal(model.generate(prompt, **options), expected)


def test_verify_packing_finds_an_unknown_head():
    model = tiny_model("llama")
    assert verify_packing(model) < 1e-6
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 2)
    with pytest.raises(
        ValueError, match="cannot be trained as a prefix tree: its log-probabilities change by"
    ):
        verify_packing(model)
    assert model.training


@pytest.mark.heavy
def test_verify_packing_finds_recurrent_layers():
    config = Qwen3NextConfig(
        **SMALL, num_key_value_heads=2, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16
    )
    with pytest.raises(ValueError, match="Qwen3NextForCausalLM cannot be trained as a prefix tree"):
        verify_packing(CausalLM.from_config(config))


def test_verify_packing_finds_what_train_mode_changes():
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.1,
    )  # fmt: skip
    model = CausalLM.from_config(config)
    assert verify_packing(model.eval()) < 1e-5
    with pytest.raises(
        ValueError, match=r"OPTForCausalLM .* in train mode its log-probabilities change by .* dropout"
    ):
        verify_packing(model.train())


def test_a_forward_pass_that_takes_no_tree_is_refused_in_a_line():
    config = FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    )
    with pytest.raises(
        ValueError, match=r"FalconForCausalLM .* its forward pass fails \(.*Error: .*\); docs/models.md lists"
    ):
        verify_packing(CausalLM.from_config(config))


def test_llama_4():
    config = Llama4TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
    )
    model = CausalLM.from_config(config, dtype=torch.float64)
    use_tree_attention(model)
    assert_equal_to_plain(model, SEQUENCES, TRAINED_FROM)


def test_verify_packing_finds_a_model_without_positions():
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        verify_packing(CausalLM.from_config(BLOOM))


@pytest.mark.parametrize("config", [BLOOM, CONFIGS["gemma2"], GptOssConfig(**SMALL, num_local_experts=2)])
def test_models_with_special_attention_keep_it(config):
    model = CausalLM.from_config(config)
    before = model.config._attn_implementation
    assert not use_tree_attention(model)
    assert model.config._attn_implementation == before


def test_sequences_beyond_the_window_are_refused():
    model = CausalLM.from_config(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8))
    use_tree_attention(model)
    (micro,) = micro_batches([list(range(3, 12))], [1], 100)
    assert packed_logprobs(model, micro).logprobs.shape == (8,)
    (micro,) = micro_batches([list(range(3, 13))], [1], 100)
    with pytest.raises(ValueError, match="9 tokens is longer than this model's sliding_window of 8"):
        packed_logprobs(model, micro)


def test_lora_on_the_head_is_refused():
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    (micro,) = micro_batches(SEQUENCES, TRAINED_FROM, 100)
    with pytest.raises(ValueError, match="remove it from LoRA's target_modules"):
        packed_logprobs(model, micro)


def test_prompt_tuning_is_refused():
    model = get_peft_model(
        tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match="prompt tuning is not supported"):
        verify_packing(model)


def test_softcapped_scores_are_refused_where_tree_attention_was_forced():
    model = tiny_model("gemma2")
    model.set_attn_implementation("prefix_tree")
    with pytest.raises(ValueError, match="tree attention does not support 'softcap'"):
        verify_packing(model)
