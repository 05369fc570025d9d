"""Environments by id and by class path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rwml_lightning.envs import EnvironmentSpec


@pytest.mark.parametrize("path", ["support.environments:ScriptedEnv", "support.environments.ScriptedEnv"])
def test_a_users_class_by_its_path(path: str) -> None:
    environment = EnvironmentSpec(path, {"greeting": "hey"}).make()
    assert environment.reset(seed=0, options={"task": "t"})[0] == "hey t"


def test_a_users_environment_by_its_gymnasium_id() -> None:
    gymnasium.register("tests/Scripted-v0", entry_point="support.environments:ScriptedEnv")
    assert EnvironmentSpec("tests/Scripted-v0").make().reset()[0] == "hello None"


@pytest.mark.parametrize(
    ("name", "greeting"),
    [
        ("support.registering_environments:Plain-v0", "Plain-v0"),
        ("support.registering_environments:Plain", "Plain-v1"),  # the newest version
        ("support.registering_environments:spaced/Named-v2", "spaced/Named-v2"),
        ("support.registering_environments:spaced/Named", "spaced/Named-v2"),
        ("support.registering_environments:Own", "hello"),
        ("support.registering_environments.Own", "hello"),
        ("support.environments:make_scripted", "made"),
    ],
)
def test_a_module_and_what_it_registers_or_holds(name: str, greeting: str) -> None:
    assert EnvironmentSpec(name).make().reset()[0] == f"{greeting} None"


@pytest.mark.parametrize("sign", [".", ":"])
@pytest.mark.parametrize(
    ("module", "attribute", "kwargs"),
    [
        ("os", "system", {"command": "touch MARK"}),
        ("subprocess", "Popen", {"args": ["touch", "MARK"]}),
        ("pathlib", "Path", {}),
        ("support.environments", "make_unsaid", {"mark": "MARK"}),
    ],
)
def test_what_is_no_environment_is_not_called(
    tmp_path: Path, sign: str, module: str, attribute: str, kwargs: dict[str, Any]
) -> None:
    mark = tmp_path / "called"
    given = {
        name: [one.replace("MARK", str(mark)) for one in value]
        if isinstance(value, list)
        else value.replace("MARK", str(mark))
        for name, value in kwargs.items()
    }
    with pytest.raises(
        ValueError, match=r"is neither a gymnasium\.Env class nor a function annotated to return one"
    ):
        EnvironmentSpec(f"{module}{sign}{attribute}", given).make()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "support.registering_environments:Plain-v7",
            {},
            "'support.registering_environments' has no 'Plain-v7' and registers no such Gymnasium id",
        ),
        (".relative:Env", {}, "neither a registered"),
        ("nonsense", {}, "neither a registered Gymnasium id \\(rwml/ALFWorld-v0"),
        ("no_such_module:Env", {}, "No module named 'no_such_module'"),
        ("support.environments:Nothing", {}, "has no 'Nothing'"),
        ("support.environments:broken_factory", {}, "makes a str, not a gymnasium.Env"),
        ("support.environments:ScriptedEnv", {"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_cannot_be_made_is_named(name: str, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvironmentSpec(name, kwargs).make()


def test_import_is_light_and_leaves_the_home_folder_alone(tmp_path: object) -> None:
    program = (
        "import sys, rwml_lightning.envs, rwml_lightning.envs.alfworld, rwml_lightning.envs.alfworld.generate\n"
        "heavy = {'torch', 'textworld', 'alfworld', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"HOME": str(tmp_path)}, timeout=60)
