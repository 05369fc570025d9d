"""The policy as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rwml_lightning.weights import base_model, model_tensors


def export_policy(policy: nn.Module, tokenizer: Any, output: Path) -> None:
    """Write a plain Hugging Face folder (safetensors, adapters merged) that transformers and vLLM load."""
    state = {name: tensor.contiguous().cpu() for name, tensor in model_tensors(policy)}
    base_model(policy).save_pretrained(output, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(output)
