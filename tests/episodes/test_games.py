"""The games of an environment, and the fixed draws of them that are played."""

from __future__ import annotations

from typing import Any

import pytest

from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.episodes.games import (
    Game,
    draw_games,
    episode_name,
    episode_seed,
    is_validation,
    list_tasks,
    task_of,
)
from rwml_lightning.seeds import derive_seed

GAMES = {"train": ["a", "b", "c"], "more": ["d"], "valid_x": ["v"], "test": ["w"], "evaluation": ["x"]}
SPEC = EnvironmentSpec("support.environments.RoomsEnv", {"games": GAMES, "folder": "x"})
ALONE = EnvironmentSpec("support.environments.RoomsEnv", {"folder": "x"})


@pytest.mark.parametrize("held_out", [False, True])
def test_games_have_one_seed_for_their_life_and_a_fixed_order(held_out: bool) -> None:
    purpose = "held-out" if held_out else "train"
    splits = {"valid_x", "test", "evaluation"} if held_out else {"train", "more"}
    for seed in (0, 1):
        wanted = [
            Game(task, derive_seed(seed, purpose, task), split) for split in splits for task in GAMES[split]
        ]
        ordered = sorted(wanted, key=lambda game: derive_seed(seed, "games", game.task))
        assert draw_games(SPEC, None, None, seed, held_out, "k") == ordered
        assert draw_games(SPEC, None, 2, seed, held_out, "k") == ordered[:2]
        assert [g.task for g in draw_games(SPEC, ["more"], None, seed, held_out, "k")] == ["d"]
        alone = [Game("", derive_seed(seed, purpose, number)) for number in range(2)]
        assert draw_games(ALONE, None, 2, seed, held_out, "k") == alone
    with pytest.raises(ValueError, match=r"k\.num_games is not set"):
        draw_games(ALONE, None, None, 0, held_out, "k")
    with pytest.raises(ValueError, match=r"k\.splits names 'no'; the environment has evaluation, more, test"):
        draw_games(SPEC, ["train", "no"], None, 0, held_out, "k")


def test_without_games_of_a_sort_the_splits_are_named() -> None:
    spec = EnvironmentSpec("support.environments.RoomsEnv", {"games": {"b": ["x"], "a": []}, "folder": "x"})
    with pytest.raises(ValueError, match=r"has no held-out games; its splits are a, b: set k\.splits"):
        draw_games(spec, None, None, 0, True, "k")
    none = EnvironmentSpec("support.environments.RoomsEnv", {"games": {}, "folder": "x"})
    with pytest.raises(ValueError, match=r"has no train games; its splits are none: set k\.splits"):
        draw_games(none, None, None, 0, False, "k")


def test_tasks_are_listed_by_split_where_there_are_any() -> None:
    assert list_tasks(SPEC) == GAMES
    assert list_tasks(ALONE) is None
    answers: dict[str, Any] = {"tasks": [1]}
    with pytest.raises(
        ValueError, match=r"^environment 'support.environments:AnsweringEnv': tasks\['train'\]\[0\] is 1"
    ):
        list_tasks(EnvironmentSpec("support.environments:AnsweringEnv", answers))


@pytest.mark.parametrize(
    ("split", "held_out"),
    [
        ("valid_seen", True),
        ("validation", True),
        ("test", True),
        ("eval_x", True),
        ("train", False),
        ("retest", False),
    ],
)
def test_which_splits_are_never_trained_on(split: str, held_out: bool) -> None:
    assert is_validation(split) is held_out


def test_an_episodes_name_holds_its_game() -> None:
    assert episode_name("a#b", 3) == "a#b#3"
    assert task_of("a#b#3") == "a#b"
    assert task_of("#3") == ""
    assert episode_seed(4, "a#1") == derive_seed(4, "episode", "a#1")
