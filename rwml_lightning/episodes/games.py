"""The games of an environment: its tasks by split, and fixed draws of games to play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwml_lightning.envs import EnvironmentSpec, read_tasks
from rwml_lightning.seeds import derive_seed


@dataclass(frozen=True)
class Game:
    """A game: the task and the seed that an environment is reset with.

    Args:
        task: Task id; empty for an environment without tasks, in which each seed is a game.
        seed: Seed of the reset.
        split: Split of the environment, for evaluation by split.
    """

    task: str
    seed: int
    split: str = ""


def episode_name(task: str, number: int) -> str:
    """Return the id of a game's episode. ``task`` is empty if the environment has no tasks, so that each seed is a game."""
    return f"{task}#{number}"


def task_of(episode_id: str) -> str:
    """Return the task id in an episode's id."""
    return episode_id.rpartition("#")[0]


def episode_seed(seed: int, episode_id: str) -> int:
    """Return the seed of an episode's reset, derived from the run's seed."""
    return derive_seed(seed, "episode", episode_id)


def is_validation(split: str) -> bool:
    """Return whether a split is held out from training."""
    return split.startswith(("valid", "test", "eval"))


def list_tasks(spec: EnvironmentSpec) -> dict[str, list[str]] | None:
    """Return task ids by split, or ``None`` for an environment without a ``tasks`` attribute.

    Raises:
        ValueError: The environment cannot be made, or its ``tasks`` are not task ids by split.
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
    """Draw games at random. The draw and the seed of each game are fixed.

    Args:
        spec: Environment.
        splits: Splits of the environment; ``None`` takes the held-out or the training splits, according to ``held_out``.
        num_games: Number of games; ``None`` takes all.
        seed: Seed of the run.
        held_out: Whether the games are for evaluation.
        key: Config key, for error messages.

    Raises:
        ValueError: A split does not exist, the splits have no games, or the environment has no tasks and ``num_games`` is not set.
    """
    tasks = list_tasks(spec)
    purpose = "held-out" if held_out else "train"
    if tasks is None:
        if num_games is None:
            raise ValueError(
                f"{key}.num_games is not set; {spec.id} has no tasks, so set the number of seeds to play"
            )
        return [Game("", derive_seed(seed, purpose, number)) for number in range(num_games)]
    unknown = sorted(set(splits or ()) - set(tasks))
    if unknown:
        raise ValueError(f"{key}.splits names {unknown[0]!r}; the environment has {', '.join(sorted(tasks))}")
    chosen = [split for split in tasks if (split in splits if splits else is_validation(split) == held_out)]
    games = [Game(task, derive_seed(seed, purpose, task), split) for split in chosen for task in tasks[split]]
    if not games:
        raise ValueError(
            f"{spec.id} has no {purpose} games; its splits are {', '.join(sorted(tasks)) or 'none'}: set {key}.splits"
        )
    games.sort(key=lambda game: derive_seed(seed, "games", game.task))
    return games[:num_games]
