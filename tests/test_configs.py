"""Every shipped config is understood by the real parser, without loading a model."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from rwml_lightning.envs.tau2 import Tau2Env
from support.command_line import Parsed, ParsingCLI
from support.configs import stack_of
from support.paths import ROOT

PARTS = {
    "hardware/cpu",
    "hardware/one_80gb",
    "hardware/eight_80gb",
    "hardware/servers",
    "alfworld/data",
    "tau2/data",
    "tau2/predictions",
}
"""Configs that others stand on."""
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*(ROOT / "configs").rglob("*.yaml"), ROOT / "examples" / "taxi.yaml"]
    if not {"sweeps", "baselines"} & set(path.relative_to(ROOT).parts)
    and not path.name.startswith("evaluation_")
    and path.with_suffix("").as_posix().partition("configs/")[2] not in PARTS
)
BASELINES = sorted(path.stem for path in (ROOT / "configs" / "alfworld" / "baselines").glob("*.yaml"))

COMMANDS = [
    command
    for page in ("policy", "tau2", "environments")
    for command in re.findall(
        r"^\S*python -m rwml_lightning .*$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE
    )
]


def test_configs_are_found() -> None:
    assert "configs/quickstart.yaml" in CONFIGS
    assert BASELINES == ["imitation", "iwm", "rft", "self_reflection"]
    assert len(COMMANDS) == 7 + 3 + 1


@pytest.mark.heavy
@pytest.mark.parametrize("config", CONFIGS)
def test_a_shipped_config_is_understood(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *stack_of(config)])
    with pytest.raises(Parsed):
        ParsingCLI()


@pytest.mark.heavy
@pytest.mark.parametrize("hardware", ["cpu", "eight_80gb"])
@pytest.mark.parametrize("config", ["configs/alfworld/wm_grpo.yaml", "configs/tau2/policy_grpo.yaml"])
def test_a_stage_stands_on_other_hardware(
    config: str, hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most stages name one card in their first lines; :mod:`test_memory` plans them all on it."""
    monkeypatch.chdir(tmp_path)
    stack = [word.replace("one_80gb", hardware) for word in stack_of(config)]
    assert f"{ROOT}/configs/hardware/{hardware}.yaml" in stack
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *stack])
    with pytest.raises(Parsed):
        ParsingCLI()


def test_a_config_fits_on_a_page() -> None:
    lengths = {config: len((ROOT / config).read_text().splitlines()) for config in CONFIGS}
    assert {config for config, length in lengths.items() if length >= 45} <= {
        "configs/quickstart.yaml",
        "examples/taxi.yaml",
    }


@pytest.mark.heavy
@pytest.mark.parametrize("base", ["policy_grpo", "policy_quickstart"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_understood_on_top_of_a_policy_config(
    base: str, baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_top = ["--config", f"{ROOT}/configs/alfworld/baselines/{baseline}.yaml"]
    stack = stack_of(f"configs/alfworld/{base}.yaml")
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *stack, *on_top])
    with pytest.raises(Parsed):
        ParsingCLI()


@pytest.mark.heavy
@pytest.mark.parametrize("evaluation", ["official", "paper"])
def test_an_evaluation_of_tau2_bench_is_understood(
    evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_top = ["--config", f"{ROOT}/configs/tau2/evaluation_{evaluation}.yaml"]
    stack = stack_of("configs/tau2/policy_grpo.yaml")
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "test", *stack, *on_top])
    seen: list[Any] = []

    class Keeping(ParsingCLI):
        def instantiate_trainer(self, **_: Any) -> Any:
            seen.append(self.datamodule.environment)
            raise Parsed

    with pytest.raises(Parsed):
        Keeping()
    pytest.importorskip("tau2", reason="the real engine")
    env = Tau2Env(**seen[0].kwargs)
    assert env.domains == ("airline", "retail", "telecom")
    assert env.user.model == "Qwen/Qwen3-235B-A22B"
    assert env.max_steps == {"official": 100, "paper": 30}[evaluation]
    split, number = {"official": ("base", 278), "paper": ("test", 100)}[evaluation]
    assert len(env.tasks[split]) == number


@pytest.mark.heavy
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
    with pytest.raises(Parsed):
        ParsingCLI()


def load_cells() -> Any:
    """The benchmark of cells, as a module."""
    path = ROOT / "benchmarks" / "world_model_cells.py"
    spec = importlib.util.spec_from_file_location("world_model_cells", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CELLS = load_cells()


@pytest.mark.heavy
@pytest.mark.parametrize("cell", [CELLS.WARM_UP, *CELLS.CELLS, *CELLS.REWARDS])
def test_a_cell_of_the_benchmark_is_understood(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = {CELLS.WARM_UP: CELLS.WARM_UP_SETTINGS, **CELLS.CELLS, **CELLS.REWARDS}[cell]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *CELLS.CONFIG, *settings])
    with pytest.raises(Parsed):
        ParsingCLI()
