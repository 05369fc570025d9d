"""The expert's episodes and what else could have been done, over real environment processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwml_lightning.data.branches import ExpertEpisode, ExpertGame, follow_expert, transitions_of
from rwml_lightning.data.collection import Collection, collect
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.schema import Episode

TASKS = {"train": ["a", "b", "broken-c"], "validation": ["v"]}


def make_spec(folder: Path) -> EnvironmentSpec:
    return EnvironmentSpec("fake_games.RoomsEnv", {"games": TASKS, "folder": str(folder), "length": 4})


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    with EnvironmentPool(make_spec(tmp_path), num_workers=2) as pool:
        yield pool


def follow(
    pool: EnvironmentPool, names: str, count: int, max_steps: int = 6, seed: int = 0
) -> list[ExpertEpisode]:
    games = [ExpertGame(f"{name}#0", name, 7) for name in names.split()]
    found, unsolved = follow_expert(pool, "rooms", games, max_steps, seed, count)
    assert len(found) + len(unsolved) == len(games)
    return found


def test_the_expert_is_followed_and_what_else_could_be_done_is_known(pool: EnvironmentPool) -> None:
    first, second = follow(pool, "a b", count=2)
    assert [step.transition.action for step in first.steps] == ["go on"] * 3
    assert first.episode.final_observation.startswith("Room 3 of a")
    assert [step.view.admissible for step in first.steps] == [
        ("go on", "wait"),
        *[("go on", "wait", "go back")] * 2,
    ]
    others = [{one.action: one.next_state[:6] for one in step.alternatives} for step in second.steps]
    assert others == [
        {"wait": "Room 0"}, {"wait": "Room 1", "go back": "Room 0"}, {"wait": "Room 2", "go back": "Room 1"},
    ]  # fmt: skip
    for step in second.steps:
        for one in step.alternatives:  # the same place, another action
            assert one.observation == step.transition.observation
            assert one.history == step.transition.history
    names = [one.transition_id for one in transitions_of(first)]
    assert len(set(names)) == len(names) == 3 + 5
    assert {one.game for one in transitions_of(first)} == {"a"}


def test_alternatives_are_a_fixed_draw(pool: EnvironmentPool) -> None:
    def drawn(seed: int) -> list[list[str]]:
        (found,) = follow(pool, "a", count=1, seed=seed)
        return [[one.action for one in step.alternatives] for step in found.steps]

    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)) for seed in range(8)}) > 1
    assert all(len(actions) == 1 for actions in drawn(0))


def test_what_is_not_solved_in_time_or_fails_is_left_out(
    pool: EnvironmentPool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = follow(pool, "broken-c a", count=0)
    assert [one.episode.game for one in found] == ["a"]
    assert "broken-c is broken" in caplog.text
    assert follow(pool, "a", count=2, max_steps=2) == []


def test_branches_are_a_transition_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    settings = Collection(
        "branches", num_alternatives=2, num_workers=1, splits=["train", "validation"], max_dropped_share=0.5
    )
    seen: list[Episode] = []
    collect(
        path, make_spec(tmp_path), None, settings, 3, None, lambda: None, lambda: None,  # type: ignore[arg-type]
        lambda number, total, episodes: seen.extend(episodes),
    )  # fmt: skip
    found = read_transitions(path)
    assert len(found) == 3 * 8
    assert {(one.game, one.split) for one in found} == {("a", "train"), ("b", "train"), ("v", "validation")}
    assert sorted(one.game for one in seen) == ["a", "b", "v"]
    assert read_metadata(path)["dropped_episodes"] == 1


def test_nothing_is_done_after_the_environment_cut_an_episode_off(
    pool: EnvironmentPool, caplog: pytest.LogCaptureFixture
) -> None:
    games = [ExpertGame(f"{name}#0", name, 7) for name in ("cut", "both", "broken-c", "fickle")]
    with caplog.at_level(logging.WARNING):
        found, unsolved = follow_expert(pool, "rooms", games, 6, 0, num_alternatives=1)
    assert "after its end" not in caplog.text
    assert [(one.episode.game, one.episode.truncated) for one in found] == [
        ("both", False),
        ("fickle", False),
    ]
    assert unsolved["cut#0"] == "its walkthrough does not solve it"
    assert "broken-c is broken" in unsolved["broken-c#0"]
    # Played again, the game is cut off after one step, so that later turns have no branches.
    assert [len(step.alternatives) for step in found[1].steps] == [1, 0, 0]
