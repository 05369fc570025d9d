"""The games of an environment: its tasks by split, and the fixed draws of them that are played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwml_lightning.envs import EnvironmentSpec, read_tasks
from rwml_lightning.seeds import derive_seed


@dataclass(frozen=True)
class Game:
    """What an environment is reset to.

    Args:
        task: Task id; empty for an environment without tasks, where the seed is the game.
        seed: Seed of the reset.
        split: Split of the environment, for evaluation by split.
    """

    task: str
    seed: int
    split: str = ""


def episode_name(task: str, number: int) -> str:
    """Id of a game's episode; ``task`` is empty where the environment has no tasks and the seed is the game."""
    return f"{task}#{number}"


def task_of(episode_id: str) -> str:
    """Task id in an episode's id."""
    return episode_id.rpartition("#")[0]


def episode_seed(seed: int, episode_id: str) -> int:
    """Seed of an episode's reset, from the run's seed."""
    return derive_seed(seed, "episode", episode_id)


def is_validation(split: str) -> bool:
    """Whether games of this split are never trained on."""
    return split.startswith(("valid", "test", "eval"))


def list_tasks(spec: EnvironmentSpec) -> dict[str, list[str]] | None:
    """Task ids by split, or ``None`` for an environment without a ``tasks`` attribute.

    Raises:
        ValueError: The environment cannot be made, or its ``tasks`` are not texts by split.
    """
    environment = spec.make()
    tasks = getattr(environment.unwrapped, "tasks", None)
    environment.close()
    try:
        return None if tasks is None else read_tasks(tasks)
    except ValueError as error:
        raise ValueError(f"environment {spec.id!r}: {error}") from error


def draw_games(
    spec: EnvironmentSpec,
    splits: Sequence[str] | None,
    num_games: int | None,
    seed: int,
    held_out: bool,
    key: str,
) -> list[Game]:
    """Draw games; the draw is fixed, and each game has one seed for its life.

    Args:
        spec: Environment.
        splits: Splits of the environment; ``None`` takes those of the sort that ``held_out`` says.
        num_games: Number of games; ``None`` takes all.
        seed: Seed of the run.
        held_out: Whether the games are for evaluation.
        key: Name of the setting, for errors.

    Raises:
        ValueError: There is no such split, no game in it, or the environment has no tasks and no number of games is given.
    """
    tasks = list_tasks(spec)
    purpose = "held-out" if held_out else "train"
    if tasks is None:
        if num_games is None:
            raise ValueError(
                f"{key}.num_games is not set; {spec.id} has no tasks, so it must say how many seeds to play"
            )
        return [Game("", derive_seed(seed, purpose, number)) for number in range(num_games)]
    unknown = sorted(set(splits or ()) - set(tasks))
    if unknown:
        raise ValueError(f"{key}.splits names {unknown[0]!r}; the environment has {', '.join(sorted(tasks))}")
    chosen = [split for split in tasks if (split in splits if splits else is_validation(split) == held_out)]
    games = [Game(task, derive_seed(seed, purpose, task), split) for split in chosen for task in tasks[split]]
    if not games:
        raise ValueError(
            f"{spec.id} has no {purpose} games; its splits are {', '.join(sorted(tasks)) or 'none'}: name some in {key}.splits"
        )
    games.sort(key=lambda game: derive_seed(seed, "games", game.task))
    return games[:num_games]
