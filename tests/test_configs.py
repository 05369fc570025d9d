"""Every shipped config is understood by the real parser, without loading a model."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from rwml_lightning.cli import RWMLCLI
from rwml_lightning.envs.tau2 import Tau2Env

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*(ROOT / "configs").rglob("*.yaml"), ROOT / "examples" / "taxi.yaml"]
    if not {"sweeps", "baselines"} & set(path.relative_to(ROOT).parts)
    and not path.name.startswith("evaluation_")
)
BASELINES = sorted(path.stem for path in (ROOT / "configs" / "alfworld" / "baselines").glob("*.yaml"))

COMMANDS = [
    command
    for page in ("policy", "tau2", "environments")
    for command in re.findall(
        r"^\S*python -m rwml_lightning .*$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE
    )
]


class Parsed(Exception):
    """Module and data are instantiated, and nothing is loaded."""


class ParsingCLI(RWMLCLI):
    """Looks for no model and stops before the trainer, whose devices may not be here."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_trainer(self, **_: Any) -> Any:
        if self.subcommand == "fit":
            self.model.check_precision(self._get(self.config_init, "trainer").precision or "32-true")
        raise Parsed


def test_configs_are_found() -> None:
    assert "configs/quickstart.yaml" in CONFIGS
    assert BASELINES == ["imitation", "iwm", "rft", "self_reflection"]
    assert len(COMMANDS) == 7 + 3 + 1


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shipped_config_is_understood(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", "--config", str(ROOT / config)])
    with pytest.raises(Parsed):
        ParsingCLI()


@pytest.mark.parametrize("base", ["policy_grpo", "policy_quickstart"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_understood_on_top_of_a_policy_config(
    base: str, baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{ROOT}/configs/alfworld/{name}.yaml" for name in (base, f"baselines/{baseline}")]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", "--config", files[0], "--config", files[1]])
    with pytest.raises(Parsed):
        ParsingCLI()


@pytest.mark.parametrize("evaluation", ["official", "paper"])
def test_an_evaluation_of_tau2_bench_is_understood(
    evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{ROOT}/configs/tau2/{name}.yaml" for name in ("policy_grpo", f"evaluation_{evaluation}")]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "test", "--config", files[0], "--config", files[1]])
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


@pytest.mark.parametrize("cell", [CELLS.WARM_UP, *CELLS.CELLS, *CELLS.REWARDS])
def test_a_cell_of_the_benchmark_is_understood(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = {CELLS.WARM_UP: CELLS.WARM_UP_SETTINGS, **CELLS.CELLS, **CELLS.REWARDS}[cell]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *CELLS.CONFIG, *settings])
    with pytest.raises(Parsed):
        ParsingCLI()
