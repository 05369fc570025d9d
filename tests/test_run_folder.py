"""Run folders: the same config finds its own again, and nothing is ever overwritten."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from rwml_lightning.run import Run, open_run_folder


def test_the_same_config_goes_on_and_another_begins_anew(tmp_path: Path) -> None:
    run = Run("r", str(tmp_path / "runs"))
    first = open_run_folder(run, "a: 1\n")
    assert first.path == tmp_path / "runs" / "r"
    assert (first.path / "config.yaml").read_text() == "a: 1\n"
    assert open_run_folder(run, "a: 1\n") == first
    second = open_run_folder(run, "a: 2\n")
    assert second.path.name == "r-2"
    assert open_run_folder(run, "a: 3\n").path.name == "r-3"
    assert open_run_folder(run, "a: 2\n") == second
    assert (first.path / "config.yaml").read_text() == "a: 1\n"


def test_a_config_may_hold_any_text(tmp_path: Path) -> None:
    run = Run("r", str(tmp_path))
    first = open_run_folder(run, "# half a pair: \ud800\n")
    assert (first.path / "config.yaml").read_text() == "# half a pair: \ufffd\n"
    assert open_run_folder(run, "# half a pair: \ud800\n") == first


def test_without_resume_each_run_has_a_folder(tmp_path: Path) -> None:
    run = Run("r", str(tmp_path), resume=False)
    assert [open_run_folder(run, "a").path.name for _ in range(3)] == ["r", "r-2", "r-3"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("mine")
    assert open_run_folder(Run("r", str(tmp_path)), "a").path.name == "r-2"
    assert (tmp_path / "r" / "config.yaml").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert open_run_folder(Run("file", str(tmp_path)), "a").path.name == "file-2"


def test_a_folder_whose_making_broke_off_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert open_run_folder(Run("r", str(tmp_path)), "a").path.name == "r-2"


barrier: Barrier


def meet(at: Barrier) -> None:
    global barrier
    barrier = at


def open_together(root: Path, config: str) -> tuple[str, str]:
    barrier.wait(30)
    folder = open_run_folder(Run("r", str(root)), config)
    return folder.path.name, (folder.path / "config.yaml").read_text()


@pytest.mark.heavy
def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    context, configs = get_context("spawn"), [f"a: {number}\n" for number in range(4)]
    with ProcessPoolExecutor(4, context, meet, (context.Barrier(4),)) as pool:
        for attempt in range(10):
            found = pool.map(open_together, [tmp_path / str(attempt)] * 4, configs, timeout=60)
            names, written = zip(*found, strict=True)
            assert set(names) == {"r", "r-2", "r-3", "r-4"}
            assert list(written) == configs


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_the_last_checkpoint_is_the_newest(tmp_path: Path, newest: int) -> None:
    folder = open_run_folder(Run("r", str(tmp_path)), "a")
    assert folder.last_checkpoint is None
    assert not folder.finished
    folder.checkpoints.mkdir()
    files = [folder.checkpoints / name for name in ("step-3.ckpt", "step-20.ckpt", "stopped-7.ckpt")]
    for number, file in enumerate(files):
        file.touch()
        os.utime(file, (1000 + number + 10 * (number == newest),) * 2)
    assert folder.last_checkpoint == files[newest]
    folder.export.mkdir()
    assert folder.finished
