"""Generated games: all task types, solvable, not won at the start, the same every time, split by scene."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("alfworld")

from rwml_lightning.envs.alfworld import ALFWorldEnv, generate, scan_games
from rwml_lightning.envs.alfworld.difficulty import Difficulty
from rwml_lightning.envs.alfworld.extra import import_engine
from rwml_lightning.envs.alfworld.generate import TASK_TYPES, generate_games


def test_walkthroughs_win_every_task_type(games: Path) -> None:
    index = scan_games(games)
    train = [game for game in index.games if game.split == "train"]
    assert sorted(game.task_type for game in train) == sorted(TASK_TYPES)
    environment = ALFWorldEnv(games)
    for game in index.games:
        _, info = environment.reset(options={"task": game.task_id})
        assert not info["won"]
        plan = environment.walkthrough()
        assert len(plan) == game.num_walkthrough_steps > 0
        for number, action in enumerate(plan, start=1):
            assert action in info["admissible_actions"]
            _, reward, terminated, _, info = environment.step(action)
            assert (reward, terminated, info["won"]) == (
                (1.0, True, True) if number == len(plan) else (0.0, False, False)
            )
    environment.close()


def test_files_beside_a_game(games: Path) -> None:
    folder = games / scan_games(games).tasks["train"][0]
    content = json.loads((folder / "game.tw-pddl").read_text())
    assert content["solvable"] is True
    assert (folder / "initial_state.pddl").read_text() == content["pddl_problem"]
    assert json.loads((folder / "traj_data.json").read_text())["task_type"] in TASK_TYPES


@pytest.mark.heavy
def test_the_same_arguments_give_the_same_games_and_existing_ones_are_kept(tmp_path: Path) -> None:
    arguments = {"seed": 3, "difficulty": "tiny", "num_workers": 2}
    first = generate_games(tmp_path / "a", 3, **arguments)
    calls: list[tuple[int, int]] = []
    times = [(tmp_path / "a" / name / "game.tw-pddl").stat().st_mtime_ns for name in first]
    more = generate_games(
        tmp_path / "a", 4, **arguments, progress=lambda done, wanted: calls.append((done, wanted))
    )
    assert more[:3] == first
    assert calls == [(3, 4), (4, 4)]
    assert [(tmp_path / "a" / name / "game.tw-pddl").stat().st_mtime_ns for name in first] == times

    again = generate_games(tmp_path / "b", 4, **{**arguments, "num_workers": 1})
    assert again == more
    for name in more:
        assert (tmp_path / "a" / name / "game.tw-pddl").read_bytes() == (
            tmp_path / "b" / name / "game.tw-pddl"
        ).read_bytes()
    other = generate_games(tmp_path / "c", 1, **{**arguments, "seed": 4})
    problems = [
        (root / name / "initial_state.pddl").read_text()
        for root, name in ((tmp_path / "a", more[0]), (tmp_path / "c", other[0]))
    ]
    assert problems[0] != problems[1]


@pytest.mark.heavy
@pytest.mark.parametrize("level", [Difficulty(3, 2, 1), Difficulty(6, 8, 2), Difficulty(100, 100, 3)])
def test_scenes_keep_their_limits_and_splits(level: Difficulty) -> None:
    scenes = import_engine("rwml_lightning.envs.alfworld.scenes")
    for task_type in TASK_TYPES:
        for seed in range(12):
            drawn = {
                split: scenes.draw_scene(task_type, split, level, Random(seed))
                for split in ("train", "validation")
            }
            for split, scene in drawn.items():
                assert (scene.floor_plan % 100 <= 6) == (split == "validation")
                needed = 3  # start, goal and appliance, or start and lamp stand
                assert len(scene.furniture) <= max(level.max_receptacles, needed)
                targets = [name for name, kind in scene.objects.items() if kind == scene.target]
                assert len(scene.objects) <= max(level.max_objects, len(targets) + 2)
                assert len(targets) >= (2 if task_type == "pick_two_obj_and_place" else 1)
                assert set(scene.place_of) == set(scene.objects)
                assert set(scene.place_of.values()) <= set(scene.furniture)
                if task_type in ("pick_and_place_simple", "pick_two_obj_and_place"):
                    assert all(scene.furniture[scene.place_of[name]] != scene.goal for name in targets)
                assert scenes.scene_problem(scene, "p") == scenes.scene_problem(scene, "p")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split: 'test' is neither"),
        ({"task_types": ("juggle",)}, "task_types: juggle; available: pick_and_place_simple"),
        ({"difficulty": "huge"}, "difficulty: 'huge' is not one of minimal, tiny, small, full"),
        ({"num_games": 0}, "num_games: 0 is not at least 1"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_games(tmp_path, **{"num_games": 1, **arguments})  # type: ignore[arg-type]


def test_difficulty_must_leave_something() -> None:
    with pytest.raises(ValueError, match=r"difficulty.max_objects: 0 is not at least 1"):
        Difficulty(5, 0, 1)


@pytest.mark.heavy
def test_a_planner_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_MAX_ATTEMPTS", 2)
    message = r"game 0 \(pick_and_place_simple\): no playable game in 2 draws; last problem: no answer within 0.001 s"
    with pytest.raises(RuntimeError, match=message):
        generate_games(tmp_path, 1, difficulty="tiny", num_workers=1, timeout_s=0.001)
