"""The expert's episodes and what else could have been done, over real environment processes."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rwml_lightning.data.collection import Collection, collect
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Observation
from rwml_lightning.episodes.expert import ExpertEpisode, follow_expert
from rwml_lightning.episodes.loop import Start
from rwml_lightning.schema import Episode
from rwml_lightning.seeds import derive_seed
from support.policies import no_policy

TASKS = {"train": ["a", "b", "broken-c"], "validation": ["v"]}


def make_spec(folder: Path) -> EnvironmentSpec:
    return EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": TASKS, "folder": str(folder), "length": 4}
    )


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    with EnvironmentPool(make_spec(tmp_path), num_workers=2) as pool:
        yield pool


def follow(
    pool: EnvironmentPool, names: str, count: int, max_turns: int = 6, seed: int = 0
) -> list[ExpertEpisode]:
    games = [Start(f"{name}#0", name, 7) for name in names.split()]
    found, unsolved = follow_expert(pool, games, max_turns, seed, count)
    assert len(found) + len(unsolved) == len(games)
    return found


@pytest.mark.heavy
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
    names = [one.transition_id for one in first.transitions]
    assert len(set(names)) == len(names) == 3 + 5
    assert {one.game for one in first.transitions} == {"a"}


def test_alternatives_are_a_fixed_draw(pool: EnvironmentPool) -> None:
    def drawn(seed: int) -> list[list[str]]:
        (found,) = follow(pool, "a", count=1, seed=seed)
        return [[one.action for one in step.alternatives] for step in found.steps]

    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)) for seed in range(8)}) > 1
    assert all(len(actions) == 1 for actions in drawn(0))


@pytest.mark.heavy
def test_what_is_not_solved_in_time_or_fails_is_left_out(
    pool: EnvironmentPool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = follow(pool, "broken-c a", count=0)
    assert [one.episode.game for one in found] == ["a"]
    assert "broken-c is broken" in caplog.text
    assert follow(pool, "a", count=2, max_turns=2) == []


@pytest.mark.heavy
def test_branches_are_a_transition_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    settings = Collection(
        "branches", num_alternatives=2, num_workers=1, splits=["train", "validation"], max_dropped_share=0.5
    )
    seen: list[Episode] = []
    collect(
        path, make_spec(tmp_path), settings, 3, no_policy,
        lambda number, total, episodes: seen.extend(episodes),
    )  # fmt: skip
    found = read_transitions(path)
    assert len(found) == 3 * 8
    assert {(one.game, one.split) for one in found} == {("a", "train"), ("b", "train"), ("v", "validation")}
    assert sorted(one.game for one in seen) == ["a", "b", "v"]
    assert read_metadata(path)["dropped_episodes"] == 1


@pytest.mark.heavy
def test_nothing_is_done_after_the_environment_cut_an_episode_off(
    pool: EnvironmentPool, caplog: pytest.LogCaptureFixture
) -> None:
    games = [Start(f"{name}#0", name, 7) for name in ("cut", "both", "broken-c", "fickle")]
    with caplog.at_level(logging.WARNING):
        found, unsolved = follow_expert(pool, games, 6, 0, num_alternatives=1)
    assert "after its end" not in caplog.text
    assert [(one.episode.game, one.episode.truncated) for one in found] == [
        ("both", False),
        ("fickle", False),
    ]
    assert unsolved["cut#0"] == "its walkthrough does not solve it"
    assert "broken-c is broken" in unsolved["broken-c#0"]
    # Played again, the game is cut off after one step, so that later turns have no branches.
    assert [len(step.alternatives) for step in found[1].steps] == [1, 0, 0]


class Rooms:
    """Environments in one process, each of three steps, and what was done in each slot since its reset."""

    spec = SimpleNamespace(id="env")
    info: ClassVar[dict[str, Any]] = {"admissible_actions": ["d", "go", "a", "c"], "task": "t"}

    def __init__(self, length: int = 3) -> None:
        self.length = length
        self.resets: list[Any] = []
        self.steps: dict[int, list[str]] = {}

    def reset_many(self, episodes: Any) -> dict[int, Any]:
        asked = list(episodes)
        self.resets.append(asked)
        self.steps |= {slot: [] for slot, _, _ in asked}
        return {slot: Observation(f"{task} 0", info=self.info) for slot, _, task in asked}

    def walkthrough_many(self, slots: Any) -> dict[int, Any]:
        return dict.fromkeys(slots, ("go",) * 5)

    def step_many(self, actions: Any) -> dict[int, Any]:
        answers = {}
        for slot, action in actions.items():
            self.steps[slot].append(action)
            number = len(self.steps[slot])
            done = number == self.length
            answers[slot] = Observation(f"at {number}", float(done), done, info=self.info)
        return answers


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 1), (0, 2), (0, 5)])
def test_branches_repeat_the_experts_actions_up_to_their_turn(seed: int, count: int) -> None:
    pool: Any = Rooms()
    starts = [Start("a#0", "a", 7, "validation"), Start("#1", "", 8)]
    found, unsolved = follow_expert(pool, starts, 4, seed, num_alternatives=count, history_turns=1)
    assert unsolved == {}
    drawn = {
        (start.episode_id, turn): random.Random(
            derive_seed(seed, "alternatives", f"{start.episode_id}/{turn}")
        ).sample(["a", "c", "d"], min(count, 3))
        for start in starts
        for turn in range(3)
    }
    each = 3 * min(count, 3)
    assert pool.resets == [
        [(0, 7, "a"), (1, 8, None)],
        [(n, 7, "a") if n < each else (n, 8, None) for n in range(2 * each)],
    ]
    branches = [["go"] * turn + [other] for (_, turn), others in drawn.items() for other in others]
    assert [pool.steps[n] for n in range(2 * each)] == branches
    for start, one in zip(starts, found, strict=True):
        assert (one.episode.episode_id, one.episode.seed, one.episode.game) == (
            start.episode_id,
            start.seed,
            start.game,
        )
        for turn, step in enumerate(one.steps):
            assert step.transition.transition_id == f"{start.episode_id}/{turn}"
            assert (step.transition.split, len(step.transition.history)) == (start.split, min(turn, 1))
            assert [other.action for other in step.alternatives] == drawn[start.episode_id, turn]
            for number, other in enumerate(step.alternatives):
                assert other.transition_id == f"{start.episode_id}~{turn}.{number}/{turn}"
                assert (other.split, other.environment, len(other.history)) == (
                    start.split,
                    "env",
                    min(turn, 1),
                )


def test_an_expert_that_is_too_slow_solves_nothing() -> None:
    starts = [Start("a#0", "a", 7), Start("#1", "", 8)]
    none, missing = follow_expert(Rooms(), starts, 2, 0)  # type: ignore[arg-type]
    assert (none, missing) == ([], dict.fromkeys(("a#0", "#1"), "its walkthrough does not solve it"))
    short, _ = follow_expert(Rooms(2), starts, 2, 0)  # type: ignore[arg-type]
    assert [len(one.steps) for one in short] == [2, 2]
    assert all(step.alternatives == () for one in short for step in one.steps)
