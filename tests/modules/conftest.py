"""Fixtures of the stages' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from support.fixtures import one_thread

__all__ = ["model", "one_thread"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LlamaForCausalLM:
    """The tiny model, plain."""
    return LlamaForCausalLM.from_pretrained(tiny_model)
