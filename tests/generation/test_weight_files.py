from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.generation import weight_files


@pytest.mark.parametrize("shared_memory", [True, False])
def test_tensors_come_back_and_files_go(monkeypatch, tmp_path: Path, shared_memory: bool) -> None:
    monkeypatch.setattr(weight_files, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if shared_memory:
        (tmp_path / "shm").mkdir()
    embedding = torch.nn.Parameter(torch.randn(6, 4))
    named = {
        "embed": embedding,
        "layers.0.tied": embedding,
        "layers.0.view": torch.arange(12.0).reshape(3, 4).T,
        "last": torch.ones(2),
    }
    with ExitStack() as files:
        paths = weight_files.write_weight_files(named.items(), files, file_bytes=150)
        assert len(paths) == 2
        (whole,) = (names for path in paths if "layers.0.view" in (names := load_file(path)))
        assert "layers.0.tied" in whole  # what a checkpoint may keep in one tensor is not torn apart
        assert all(("shm" in path) == shared_memory for path in paths)
        read = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert read.keys() == named.keys()
    for name, tensor in named.items():
        assert torch.equal(read[name], tensor)
    assert not any(Path(path).exists() for path in paths)


def test_files_go_after_an_error(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weight_files, "SHARED_MEMORY", tmp_path)

    def fail_after_writing() -> None:
        with ExitStack() as files:
            weight_files.write_weight_files([("a", torch.ones(2))], files)
            assert list(tmp_path.iterdir())
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_writing()
    assert not list(tmp_path.iterdir())
