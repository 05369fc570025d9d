"""What importing costs; the import-linter contract says who may import whom."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOADED = "import {}, json, sys; print(json.dumps(sorted(sys.modules)))"


def loaded_by(module: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after an import."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module)], capture_output=True, text=True, timeout=120, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def foreign(modules: set[str], baseline: set[str]) -> set[str]:
    """What is neither of the standard library nor loaded by every interpreter of this environment."""
    return modules - set(sys.stdlib_module_names) - baseline


@pytest.mark.parametrize("module", ["schema", "seeds", "run", "trace", "credentials"])
def test_records_and_run_store_are_standard_library(module: str) -> None:
    assert foreign(loaded_by(f"rwml_lightning.{module}"), loaded_by("json")) == {"rwml_lightning"}


def test_the_dashboard_loads_no_trainer() -> None:
    loaded = loaded_by("rwml_tui.app")
    assert "textual" in loaded
    assert not loaded & {"torch", "lightning", "transformers", "numpy", "rwml_callbacks"}


def test_environments_load_no_model() -> None:
    assert not loaded_by("rwml_lightning.envs") & {"torch", "lightning", "transformers"}


def test_callbacks_load_no_harness() -> None:
    assert "lm_eval" not in loaded_by("rwml_callbacks")
