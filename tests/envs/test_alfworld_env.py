"""ALFWorld as a Gymnasium environment."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import gymnasium
import pytest

pytest.importorskip("alfworld")

import rwml_lightning.envs  # noqa: F401 - registers the id
from rwml_lightning.envs.alfworld import ALFWorldEnv
from rwml_lightning.envs.alfworld.extra import import_engine


def test_observations_hold_neither_banner_nor_task(games: Path) -> None:
    environment = ALFWorldEnv(games)
    task = environment.tasks["train"][0]
    obs, info = environment.reset(options={"task": task})
    assert obs.startswith("You are in the middle of a room.")
    assert obs == obs.strip()
    assert "task is to" not in obs
    assert "TextWorld" not in obs
    assert info["task"]
    assert "Your task" not in info["task"]
    assert info["game"] == task
    assert set(info) == {"admissible_actions", "task", "game", "task_type", "won"}
    assert info["task_type"] in task


def test_steps_say_whether_they_were_valid_and_of_what_kind(games: Path) -> None:
    environment = ALFWorldEnv(games, max_steps=3)
    _, info = environment.reset(options={"task": environment.tasks["train"][0]})
    go = next(action for action in info["admissible_actions"] if action.startswith("go to"))
    obs, reward, terminated, truncated, info = environment.step(go)
    assert obs.startswith("You arrive at")
    assert (reward, terminated, truncated, info["valid"], info["kind"]) == (
        0.0,
        False,
        False,
        True,
        "navigation",
    )
    obs, _, _, truncated, info = environment.step("fly")
    assert (obs, info["valid"], info["kind"], info["knowable"]) == (
        "Nothing happens.",
        False,
        "nothing_happens",
        True,
    )
    assert not truncated
    *_, terminated, truncated, info = environment.step(go)
    assert (terminated, truncated) == (False, True)


@pytest.mark.heavy
def test_the_solution_is_nowhere_to_be_seen(games: Path) -> None:
    environment = ALFWorldEnv(games)
    for task in environment.tasks["train"]:
        obs, info = environment.reset(options={"task": task})
        plan = environment.walkthrough()
        assert plan
        text = json.dumps([obs, {key: value for key, value in info.items() if key != "admissible_actions"}])
        assert not any(action in text for action in plan)
        assert info["admissible_actions"] == sorted(info["admissible_actions"])


def test_a_seed_draws_the_game(games: Path) -> None:
    environment = ALFWorldEnv(games, split="train")
    drawn = [environment.reset(seed=seed)[1]["game"] for seed in (0, 1, 2, 3, 0)]
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) > 1
    assert set(drawn) <= set(environment.tasks["train"])


def test_by_its_gymnasium_id(games: Path) -> None:
    environment = gymnasium.make("rwml/ALFWorld-v0", data=str(games), max_steps=5)
    obs, _ = environment.reset(seed=1)
    assert environment.observation_space.contains(obs)


def test_real_games_of_the_older_format(real_games: Path) -> None:
    environment = ALFWorldEnv(real_games)
    assert {split: len(tasks) for split, tasks in environment.tasks.items()} == {
        "valid_seen": 6,
        "valid_unseen": 6,
    }
    _, info = environment.reset(options={"task": environment.tasks["valid_seen"][0]})
    obs, *_, info = environment.step(info["admissible_actions"][0])
    assert obs.startswith("You arrive at loc ")
    assert info["knowable"] is False
    environment.reset(options={"task": environment.tasks["valid_seen"][1]})
    for action in environment.walkthrough():  # none is stored: the planner's
        *_, terminated, _, info = environment.step(action)
    assert terminated
    assert info["won"]


def test_bad_input_is_named(games: Path, tmp_path: Path) -> None:
    environment = ALFWorldEnv(games)
    task = environment.tasks["train"][0]
    with pytest.raises(ValueError, match=f"task: no game .* nearest: '{task}'"):
        environment.reset(options={"task": task[:-1]})
    with pytest.raises(ValueError, match="task: no game"):
        environment.reset(options={"task": f"../{games.name}/{task}/../../../.."})
    with pytest.raises(
        ValueError, match=r"split: no game of split 'valid_seen' .* available: train, validation"
    ):
        ALFWorldEnv(games, split="valid_seen").reset()
    with pytest.raises(ValueError, match="max_steps: 0 is not at least 1"):
        ALFWorldEnv(games, max_steps=0)

    path = tmp_path / "train" / "x" / "trial" / "game.tw-pddl"
    shutil.copytree((games / task), path.parent)
    content = json.loads(path.read_text())
    for problem in (
        "(define (problem",
        content["pddl_problem"].replace("receptacleAtLocation", "teleportsTo"),
    ):
        path.write_text(json.dumps({**content, "pddl_problem": problem}))
        with pytest.raises(ValueError, match=r"trial/game.tw-pddl: the game does not load"):
            ALFWorldEnv(tmp_path).reset(options={"task": "train/x/trial"})


def test_a_missing_extra_is_one_line_with_the_command(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rwml-lightning\[alfworld\]'$"):
        ALFWorldEnv(games)


def test_import_restores_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    import_engine("alfworld.info")
    import os

    assert "ALFWORLD_DATA" not in os.environ
