"""Models with random weights in the shapes of real ones, and random token ids."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gpu_parts.device import device

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""Shapes of Qwen2.5's models of these sizes, and one for a CPU."""


def random_model(shape: str, dtype: torch.dtype, **changes: Any) -> Qwen2ForCausalLM:
    """Make a model with random weights on the device itself.

    Args:
        shape: Name in :data:`SHAPES`.
        dtype: Dtype of the weights.
        changes: Settings of the config that differ from the shape's.
    """
    sizes = {**SHAPES[shape], **changes}
    config = Qwen2Config(
        **sizes, max_position_embeddings=32768, bos_token_id=None, eos_token_id=0, pad_token_id=1
    )
    torch.manual_seed(0)
    with torch.device(device()):
        return Qwen2ForCausalLM._from_config(config, dtype=dtype)


@contextmanager
def random_model_folder(shape: str, dtype: torch.dtype) -> Iterator[str]:
    """Write a model with random weights and a tokenizer of bytes as a Hugging Face folder, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="random-model-") as folder:
        random_model(shape, dtype).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        torch.cuda.empty_cache()  # an engine wants the memory
        yield folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each byte, and two special ones before them."""
    alphabet = ["<end>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def random_ids(rng: Random, count: int, vocabulary: int) -> list[int]:
    """Draw token ids that are not special."""
    return [rng.randrange(2, vocabulary) for _ in range(count)]
