"""Environments by id and by class path."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest

from rwml_lightning.envs import EnvironmentSpec


@pytest.mark.parametrize("path", ["fake_text_envs:ScriptedEnv", "fake_text_envs.ScriptedEnv"])
def test_a_users_class_by_its_path(path: str) -> None:
    environment = EnvironmentSpec(path, {"greeting": "hey"}).make()
    assert environment.reset(seed=0, options={"task": "t"})[0] == "hey t"


def test_a_users_environment_by_its_gymnasium_id() -> None:
    gymnasium.register("tests/Scripted-v0", entry_point="fake_text_envs:ScriptedEnv")
    assert EnvironmentSpec("tests/Scripted-v0").make().reset()[0] == "hello None"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("nonsense", {}, "neither a registered Gymnasium id \\(rwml/ALFWorld-v0"),
        ("no_such_module:Env", {}, "No module named 'no_such_module'"),
        ("fake_text_envs:Nothing", {}, "has no 'Nothing'"),
        ("fake_text_envs:broken_factory", {}, "makes a str, not a gymnasium.Env"),
        ("fake_text_envs:ScriptedEnv", {"colour": 1}, "unexpected keyword argument 'colour'"),
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
