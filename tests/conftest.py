"""Fixtures of several folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.prompts.chat_format import ChatFormat
from support.models import write_taught_model
from support.paths import IMPORTABLE

os.environ["PYTHONPATH"] = IMPORTABLE  # for processes that the tests start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of :func:`support.models.write_taught_model`; a mutation run has written it once for all mutants."""
    folder = os.environ.get("RWML_TINY_MODEL")
    return Path(folder) if folder else write_taught_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of the tiny model, without a chat template."""
    from rwml_lightning.models import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture(scope="session")
def tiny_chat(tiny_tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Chat format of the tiny model: plain text."""
    return ChatFormat(tiny_tokenizer)
