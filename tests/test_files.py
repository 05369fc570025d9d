"""Files that are complete or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwml_lightning.files import replacing, write_json


def test_json_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.json"
    write_json(file, {"share": 0.5})
    for unwritable in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, {"share": unwritable})
    assert json.loads(file.read_text()) == {"share": 0.5}
    assert [found.name for found in file.parent.iterdir()] == ["a.json"]


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a"
    for content in ("old", "new"):
        with replacing(file) as partial:
            partial.write_text(content)
            assert partial.parent == file.parent
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing(folder) as partial:
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "weights").write_text("w")
        assert not folder.exists()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "model", "model/deep", "model/deep/weights",
    ]  # fmt: skip


@pytest.mark.parametrize("as_folder", [False, True])
def test_nothing_is_left_of_an_interrupted_write(tmp_path: Path, as_folder: bool) -> None:
    file = tmp_path / "a"
    if not as_folder:
        file.write_text("old")

    def interrupted() -> None:
        with replacing(file) as partial:
            if as_folder:
                partial.mkdir()
                partial = partial / "weights"
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == (
        [] if as_folder else [("a", "old")]
    )


def test_text_that_is_not_unicode_is_replaced(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"reply": "a\ud800b é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"reply": "a\ufffdb é"}
