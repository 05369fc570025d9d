"""Runs that the dashboard's tests look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rwml_lightning.trace import TraceWriter
from support.dashboard import make_group
from support.runs import make_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    with TraceWriter(folder / "trace.db") as writer:
        writer.start_stage("wm_grpo", 9, "")
        for step in range(5):
            writer.write_step("wm_grpo", step, {"wm/reward": 0.5}, [make_group(step)])
    return folder


@pytest.fixture(scope="session")
def recorded_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real training run of two steps in an environment of a few rooms, recorded as every run is."""
    folder = tmp_path_factory.mktemp("recorded")
    games = {"train": ["a", "b", "c"], "validation": ["v"]}
    rooms = {"id": "support.environments.RoomsEnv", "kwargs": {"games": games, "folder": str(folder)}}
    collection = {"behaviour": "random", "max_turns": 5, "num_environments": 4, "num_workers": 1}
    predictions = {"collection": collection, "sampling": {"max_tokens": 12}}
    config = make_config(folder, tiny_model, data={"environment": rooms}, predictions=predictions)
    command = [sys.executable, "-m", "rwml_lightning", "fit", "--config", str(config)]
    subprocess.run(command, check=True, timeout=240)
    return folder / "runs" / "r"
