"""Games that are generated when a config asks for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.terminal import Terminal


@dataclass(frozen=True)
class GeneratedGames:
    """ALFWorld games to generate from what its package ships; scores on them are not ALFWorld scores.

    Args:
        folder: Where they lie, and what the environment plays unless its ``kwargs`` name other ``data``.
        num_train: Games in training scenes.
        num_validation: Games in other scenes.
        difficulty: ``minimal``, ``tiny``, ``small`` or ``full``: how many receptacles and objects.
        task_types: Which of ALFWorld's six; ``null`` for all.
        num_workers: Processes that generate.
    """

    folder: str
    num_train: int = 30
    num_validation: int = 12
    difficulty: str = "small"
    task_types: list[str] | None = None
    num_workers: int = 2

    def played_by(self, spec: EnvironmentSpec) -> EnvironmentSpec:
        """The environment with these games, unless its own ``kwargs`` name other ``data``."""
        return replace(spec, kwargs={"data": self.folder, **spec.kwargs})


def make_games(games: GeneratedGames, seed: int) -> None:
    """Generate the games that are not there yet."""
    from rwml_lightning.envs.alfworld.generate import TASK_TYPES, generate_games

    console = Terminal(stderr=True)
    counts: dict[Literal["train", "validation"], int] = {
        "train": games.num_train,
        "validation": games.num_validation,
    }
    for split, count in counts.items():
        with Progress(
            TextColumn(f"generating {split} games"), BarColumn(), MofNCompleteColumn(), console=console,
            disable=not console.is_terminal,
        ) as progress:  # fmt: skip
            task = progress.add_task("", total=count)
            generate_games(
                games.folder,
                count,
                seed=seed,
                split=split,
                difficulty=games.difficulty,
                task_types=games.task_types or TASK_TYPES,
                num_workers=games.num_workers,
                progress=partial(_show, progress, task),
            )


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
