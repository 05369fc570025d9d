"""Config of generated ALFWorld games."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class GeneratedGames:
    """ALFWorld games to generate from the files of the ``alfworld`` package. Scores on these games are not ALFWorld scores.

    Args:
        folder: Folder of the games.
        num_train: Number of games in training scenes.
        num_validation: Number of games in other scenes.
        difficulty: ``minimal``, ``tiny``, ``small`` or ``full``: the number of receptacles and objects.
        task_types: Some of ALFWorld's six task types; ``null`` for all.
        num_workers: Number of processes that generate games.
    """

    folder: str
    num_train: int = 30
    num_validation: int = 12
    difficulty: str = "small"
    task_types: list[str] | None = None
    num_workers: int = 2

    def generate(self, seed: int) -> None:
        """Generate the games that do not exist yet, with a progress bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from rwml_lightning.envs.alfworld.generate import TASK_TYPES, generate_games
        from rwml_lightning.terminal import Terminal

        console = Terminal(stderr=True)
        counts: dict[Literal["train", "validation"], int] = {
            "train": self.num_train,
            "validation": self.num_validation,
        }
        for split, count in counts.items():
            columns = (TextColumn(f"generating {split} games"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                generate_games(
                    self.folder,
                    count,
                    seed=seed,
                    split=split,
                    difficulty=self.difficulty,
                    task_types=self.task_types or TASK_TYPES,
                    num_workers=self.num_workers,
                    progress=partial(_update, progress, progress.add_task("", total=count)),
                )


def _update(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
