"""What importing costs and what it needs; the import-linter contract says who may import whom."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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


@pytest.mark.heavy
@pytest.mark.parametrize("module", ["schema", "seeds", "run", "trace", "credentials"])
def test_records_and_run_store_are_standard_library(module: str) -> None:
    assert foreign(loaded_by(f"rwml_lightning.{module}"), loaded_by("json")) == {"rwml_lightning"}


@pytest.mark.heavy
def test_the_dashboard_loads_no_trainer() -> None:
    loaded = loaded_by("rwml_tui.app")
    assert "textual" in loaded
    assert not loaded & {"torch", "lightning", "transformers", "numpy", "rwml_callbacks"}


@pytest.mark.heavy
def test_environments_load_no_model() -> None:
    assert not loaded_by("rwml_lightning.envs") & {"torch", "lightning", "transformers"}


@pytest.mark.heavy
def test_callbacks_load_no_harness() -> None:
    assert "lm_eval" not in loaded_by("rwml_callbacks")


def imported_by(file: Path) -> Iterator[str]:
    """Top-level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def imported_modules() -> Iterator[str]:
    """Top-level modules that the packages import."""
    for package in ("rwml_lightning", "callbacks", "tui"):
        for file in (ROOT / package).rglob("*.py"):
            yield from imported_by(file)


def plain(name: str) -> str:
    """A name in the one spelling of its several."""
    return name.lower().replace("-", "_")


@pytest.mark.heavy
def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    declared = {plain(re.split(r"[^\w.-]", one)[0]) for group in groups for one in group}
    declared.add("tau2")  # installed without what it asks for, see the Makefile
    own = {"rwml_lightning", "rwml_callbacks", "rwml_tui"}
    distributions = packages_distributions()
    undeclared = {
        module
        for module in set(imported_modules()) - set(sys.stdlib_module_names) - own
        if not {plain(name) for name in (module, *distributions.get(module, ()))} & declared
    }
    assert not undeclared


@pytest.mark.heavy
def test_no_test_module_is_imported() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    modules = {file.stem for file in files if "support" not in file.relative_to(ROOT / "tests").parts}
    assert {"conftest", "test_imports"} <= modules
    importing = {str(file.relative_to(ROOT)) for file in files if modules & set(imported_by(file))}
    assert importing == set()  # what they import belongs in tests/support
