"""Fixtures of the stages' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrix products: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LlamaForCausalLM:
    """The tiny model, plain."""
    return LlamaForCausalLM.from_pretrained(tiny_model)
