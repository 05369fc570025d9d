"""Fixtures of several folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from rwml_testing import make_world, teach, write_tiny_model
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama of 2 layers x 32 that writes well-formed answers to bare actions, some of them right."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    world = make_world()
    model, tokenizer = write_tiny_model(folder, world, vocabulary=340)
    teach(model, tokenizer, [t for t in world if t.split == "train"], num_steps=60)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of the tiny model, without a chat template."""
    from rwml_lightning.models import load_tokenizer

    return load_tokenizer(tiny_model)
