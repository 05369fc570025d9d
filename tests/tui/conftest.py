"""Runs that the dashboard's tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tui_testing import make_group

from rwml_lightning.trace import TraceWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    with TraceWriter(folder / "trace.db") as writer:
        writer.start_stage("wm_grpo", 9, "")
        for step in range(5):
            writer.write_step("wm_grpo", step, {"wm/reward": 0.5}, [make_group(step)])
    return folder
