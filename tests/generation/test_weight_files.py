from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(("free", "in_memory"), [(2 * 8, False), (2 * 8 + 1, True)])
def test_shared_memory_must_have_room_for_twice_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, in_memory: bool
) -> None:
    asked: list[Path] = []
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(weight_files, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        weight_files.shutil, "disk_usage", lambda p: (asked.append(p), SimpleNamespace(free=free))[1]
    )
    with ExitStack() as files:
        (path,) = weight_files.write_weight_files([("a", torch.ones(2))], files)
        assert Path(path).parent == (tmp_path / "shm" if in_memory else tmp_path)
        assert Path(path).match("rwml-weights-*.safetensors")  # known by name, should one be left
    assert asked == [tmp_path / "shm"]


@pytest.mark.parametrize(
    ("file_bytes", "files"), [(8, ["a", "b", "c"]), (9, ["ab", "c"]), (16, ["ab", "c"]), (17, ["abc"]), (99, ["abc"])]
)  # fmt: skip
def test_a_file_is_closed_when_it_is_full(tmp_path: Path, file_bytes: int, files: list[str]) -> None:
    """Three tensors of eight bytes, each a layer of its own."""
    named = [(f"layers.{number}.{name}", torch.ones(2)) for number, name in enumerate("abc")]
    with ExitStack() as stack:
        paths = weight_files.write_weight_files(named, stack, file_bytes)
        found = ["".join(sorted(name[-1] for name in load_file(path))) for path in paths]
    assert found == files


def test_tensors_are_asked_for_one_file_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weight_files, "SHARED_MEMORY", tmp_path)
    written: list[int] = []

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            written.append(len(list(tmp_path.iterdir())))
            yield f"layers.{number}.a", torch.ones(2, requires_grad=True)

    with ExitStack() as stack:
        assert len(weight_files.write_weight_files(named(), stack, 8)) == 3
    assert written == [0, 0, 1]  # a layer is whole when the next has begun


@pytest.mark.parametrize("shared_memory", [True, False])
def test_adapters_are_a_folder_of_peft_that_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_memory: bool
) -> None:
    monkeypatch.setattr(weight_files, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if shared_memory:
        (tmp_path / "shm").mkdir()
    named = {"a.lora_A.weight": torch.arange(6.0).reshape(2, 3).T, "a.lora_B.weight": torch.ones(2, 3)}
    with ExitStack() as files:
        folder = Path(weight_files.write_adapter_folder(named.items(), {"r": 2}, files))
        assert folder.parent == (tmp_path / "shm" if shared_memory else tmp_path)
        assert folder.match("rwml-weights-*")
        read = load_file(folder / "adapter_model.safetensors")
        assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 2}
    assert read.keys() == named.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in named.items())
    assert not folder.exists()
