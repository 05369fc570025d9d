"""Tiny models of several architectures for packed log-probabilities."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM as CausalLM
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 31
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "granite": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=3.0),
    "cohere": CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.3),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.5),
}


def tiny_model(name: str, implementation: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    model = CausalLM.from_config(CONFIGS[name], dtype=torch.float64, attn_implementation=implementation)
    for parameter in model.parameters():  # with the default initialisation, near zero, tokens hardly differ
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.train()
