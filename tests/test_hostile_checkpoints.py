"""A checkpoint gives weights and counters: it runs no code, imports no module and changes no setting."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rwml_callbacks
import rwml_tui
import torch
import yaml

import rwml_lightning
from rwml_lightning.cli import main
from rwml_lightning.modules import WorldModelGRPO
from support.command_line import error_of
from support.runs import write_config


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY, 0o600)


def write_checkpoint(file: Path, model: Path, **more: Any) -> Path:
    """A whole checkpoint of an untrained policy, with what a stranger added."""
    module = WorldModelGRPO(model=str(model))
    module.configure_model()
    counts = {
        kind: {"ready": 0, "started": 0, "processed": 0, "completed": 0} for kind in ("total", "current")
    }
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"epoch_progress": counts, "epoch_loop.batch_progress": counts},
                  "validate_loop": {}, "test_loop": {}},
    }  # fmt: skip
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint | more, file)
    return file


def config_for(command: str, folder: Path, model: Path) -> Path:
    """Only a policy is tested; the other commands take a world model."""
    stage = "PolicyGRPO" if command == "test" else "WorldModelGRPO"
    return write_config(
        folder,
        model,
        model={"class_path": f"rwml_lightning.modules.{stage}", "init_args": {"model": str(model)}},
    )


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "exploded"


@pytest.fixture
def trap(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Hyperparameters whose class lies in a module that writes a file when it is imported."""
    (tmp_path / "trap_module.py").write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"_class_path": "trap_module.Trap", "optimizer": {"learning_rate": 9.0}}


@pytest.mark.heavy
@pytest.mark.parametrize("named", ["settings", "class"])
def test_a_checkpoint_changes_no_setting_and_imports_nothing(
    named: str,
    trap: dict[str, Any],
    mark: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = (
        trap
        if named == "class"
        else {"init_args": {"optimizer": {"learning_rate": 9.0}}, "optimizer": {"learning_rate": 9.0}}
    )
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", tiny_model, hyper_parameters=wanted)
    config = write_config(
        tmp_path,
        tiny_model,
        model={"init_args": {"model": str(tiny_model), "optimizer": {"learning_rate": 2e-3}}},
    )
    seen: list[float] = []
    monkeypatch.setattr(
        "rwml_lightning.cli.RWMLCLI._evaluate_with",
        lambda cli, command, model, kwargs: seen.append(model.optimizer.learning_rate) or sys.exit(0),  # type: ignore[func-returns-value]
    )
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--config", str(config), "--ckpt_path", str(checkpoint)])
    assert stopped.value.code == 0
    assert seen == [2e-3]
    assert not mark.exists()
    assert "trap_module" not in sys.modules


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("fit", "state_dict"),
        ("validate", "hyper_parameters"),
        ("test", "callbacks"),
        ("validate", "state_dict"),
    ],
)
def test_code_in_a_checkpoint_is_not_run(
    command: str, place: str, mark: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", tiny_model, **{place: {"x": Bomb(mark)}})
    config = config_for(command, tmp_path, tiny_model)
    message = error_of([command, "--config", str(config), "--ckpt_path", str(checkpoint)], capsys)
    assert f"{checkpoint} is not a complete checkpoint of rwml-lightning" in message
    assert not mark.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.heavy
def test_code_in_weights_to_start_from_is_not_run(
    mark: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", tiny_model, more=Bomb(mark))
    init_args = {"model": str(tiny_model), "init_from": str(checkpoint)}
    config = write_config(tmp_path, tiny_model, model={"init_args": init_args})
    assert "not a complete checkpoint of rwml-lightning" in error_of(["fit", "--config", str(config)], capsys)
    arguments = ["export", "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "out")]
    assert "not a complete checkpoint of rwml-lightning" in error_of(arguments, capsys)
    evaluated = ["evaluate", "--config", str(write_config(tmp_path, tiny_model)), "--models", str(checkpoint)]
    error_of([*evaluated, "--output", str(tmp_path / "results")], capsys)
    assert not mark.exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "name"),
    [("fit", "http://127.0.0.1:9/a.ckpt"), ("validate", "https://127.0.0.1:9/a.ckpt"), ("test", "s3://bucket/a.ckpt"),
     ("validate", "hf://user/model/a.ckpt"), ("validate", "memory://a.ckpt"), ("fit", "registry:a"), ("validate", "best"),
     ("fit", "last"), ("test", "hpc"), ("fit", "no.ckpt")],
)  # fmt: skip
def test_only_local_files_are_checkpoints(
    command: str,
    name: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("best", "last", "hpc"):  # Lightning would take these for other files
        (tmp_path / word).touch()
    config = config_for(command, tmp_path, tiny_model)
    message = error_of([command, "--config", str(config), "--ckpt_path", name], capsys)
    assert message.startswith(f"error: --ckpt_path names {name}, which is not a local file")
    assert not (tmp_path / "runs").exists()


def test_loading_of_objects_cannot_be_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_model)
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--config", str(config), "--weights_only", "false"])
    assert stopped.value.code == 2


UNPICKLERS = (
    "load_from_checkpoint",
    "load_state_dict_from_url",
    "read_pickle",
    "Unpickler",
    "unsafe_load",
    "full_load",
)
MODULES = ("torch", "pickle", "np", "numpy", "yaml", "joblib", "dill", "cloudpickle", "marshal", "shelve")


@pytest.mark.heavy
def test_every_load_of_a_file_is_of_a_safe_kind() -> None:
    """No call runs what a file says; pipes alone carry pickled objects, from processes that a run has started itself."""
    unsafe: list[str] = []
    for package in (rwml_lightning, rwml_callbacks, rwml_tui):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                module, _, name = ast.unparse(node.func).rpartition(".")
                weights_only = any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
                )
                loads = name in UNPICKLERS or (name in ("load", "loads", "open") and module in MODULES)
                if loads and not (module == "torch" and weights_only):
                    unsafe.append(f"{file.name}:{node.lineno} {module}.{name}")
    assert unsafe == []


def test_yaml_of_a_config_makes_no_objects(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = {"x": f"!!python/object/apply:os.open ['{mark}', {os.O_CREAT}]"}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(code).replace("'!!", "!!").replace("]'", "]").replace("''", "'")
    )
    error_of(["fit", "--config", str(tmp_path / "config.yaml")], capsys)
    assert not mark.exists()
