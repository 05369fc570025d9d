"""Tiny models of several architectures for the Hugging Face generator, and their log-probabilities without it."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rwml_lightning.generation import HFGenerator
from rwml_lightning.schema import Completion

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far enough from uniform that greedy choices have no ties
    "eos_token_id": None,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
PROMPTS = [[5], list(range(1, 18)), [9, 8, 7, 6, 5], list(range(40, 71))]
# Sums in float32 have different orders. Measured differences are below 1e-5.
TOLERANCE = 1e-4


def tiny_model(architecture: str = "llama", attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    config_class, model_class = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = config_class(**{**SHAPE, **changes})
    config._attn_implementation = attention
    return model_class(config).eval()


def attached(model: PreTrainedModel, end_token_ids: tuple[int, ...] = (), **arguments: object) -> HFGenerator:
    generator = HFGenerator(end_token_ids=end_token_ids, **arguments)
    generator.attach(model)
    return generator


def plain_logprobs(
    model: torch.nn.Module, prompt: list[int], completion: Completion, temperature: float = 1.0
) -> list[float]:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    chosen = ids[0, len(prompt) :, None]
    return (logits / temperature).log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
