"""Games that an environment's spec has generated, and the arguments that it is then made with."""

from __future__ import annotations

import io
from typing import Any

import pytest

from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.envs.alfworld import generate
from rwml_lightning.envs.alfworld.generated_games import GeneratedGames
from rwml_lightning.terminal import Terminal


def test_generated_games_are_played_from_their_folder_unless_other_data_is_named() -> None:
    games = GeneratedGames("folder")
    assert EnvironmentSpec("e", {"k": 1}).arguments == {"k": 1}
    assert EnvironmentSpec("e", {"k": 1}, games).arguments == {"data": "folder", "k": 1}
    assert EnvironmentSpec("e", {"data": "own"}, games).arguments == {"data": "own"}


def test_an_environment_is_made_with_the_folder_of_its_games() -> None:
    spec = EnvironmentSpec("support.environments:ScriptedEnv", {"greeting": "hey"}, GeneratedGames("folder"))
    with pytest.raises(ValueError, match="unexpected keyword argument 'data'"):  # it takes no folder
        spec.make()
    named = EnvironmentSpec("support.environments:ScriptedEnv", {"greeting": "hey"})
    assert named.make().reset()[0] == "hey None"


def test_games_are_generated_where_there_are_some_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(GeneratedGames, "generate", lambda self, seed: made.append((self, seed)))
    EnvironmentSpec("e").prepare(3)
    assert made == []
    EnvironmentSpec("e", {"data": "own"}, GeneratedGames("folder")).prepare(3)
    assert made == [(GeneratedGames("folder"), 3)]


def test_generated_games_are_made_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    calls: list[Any] = []

    def terminal(**options: Any) -> Terminal:
        assert options == {"stderr": True}
        return Terminal(file=shown, force_terminal=True, width=140, color_system=None)

    def generate_games(folder: str, count: int, **settings: Any) -> None:
        settings.pop("progress")(count, count)
        calls.append((folder, count, settings))

    monkeypatch.setattr("rwml_lightning.terminal.Terminal", terminal)
    monkeypatch.setattr(generate, "generate_games", generate_games)
    GeneratedGames("f", 3, 2, "tiny", ["look"], 4).generate(9)
    same = {"seed": 9, "difficulty": "tiny", "task_types": ["look"], "num_workers": 4}
    assert calls == [("f", 3, {**same, "split": "train"}), ("f", 2, {**same, "split": "validation"})]
    for text in ("generating train games", "3/3", "generating validation games", "2/2"):
        assert text in shown.getvalue()
    GeneratedGames("f").generate(9)
    assert calls[-1][2]["task_types"] == generate.TASK_TYPES
