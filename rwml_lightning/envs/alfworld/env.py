"""ALFWorld as a Gymnasium environment with text observations."""

from __future__ import annotations

import difflib
import os
import string
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium

from rwml_lightning.envs.alfworld.extra import import_engine
from rwml_lightning.envs.alfworld.games import (
    GAME_FILE,
    GameIndex,
    OnBroken,
    games_folder,
    read_game,
    scan_games,
    task_type,
)
from rwml_lightning.envs.alfworld.kinds import is_knowable, revealed, transition_kind

_BANNER = "-= Welcome to TextWorld, ALFRED! =-"
_TASK_MARK = "Your task is to: "
_TEXT = gymnasium.spaces.Text(min_length=0, max_length=1 << 16, charset=string.printable)


class ALFWorldEnv(gymnasium.Env[str, str]):
    """The text games of ALFWorld (arXiv 2010.03768) on their real engine.

    ``info`` after ``reset`` and ``step`` holds ``admissible_actions`` (list of texts, without the accepted but idle
    ``help``), ``task`` (what is to be done),
    ``game`` (task id), ``task_type`` and ``won``; after ``step`` also, of the last action, ``valid`` (it was accepted), ``kind`` and
    ``knowable`` (see ``kinds``). The expert's solution is in neither ``obs`` nor ``info``.

    A step pays 1 when it wins the game, else 0. Observations are ALFWorld's sentences without banner and task.

    Args:
        data: Folder of ``game.tw-pddl`` files; ``None`` for the one that ``ALFWORLD_DATA`` names.
        split: Split that ``reset`` draws from when it is given no task; ``None`` for all games.
        max_steps: Actions after which an episode is truncated.
        on_broken: Whether unreadable game files are left out or refused (``skip`` or ``raise``).

    Raises:
        ValueError: A bad argument, or no such folder.
        ModuleNotFoundError: ALFWorld is not installed; the message says how to.

    Example:
        >>> env = ALFWorldEnv("games", max_steps=30)  # doctest: +SKIP
        >>> obs, info = env.reset(options={"task": env.tasks["train"][0]})  # doctest: +SKIP
        >>> obs, reward, terminated, truncated, info = env.step(info["admissible_actions"][0])  # doctest: +SKIP
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the base class types it so
    observation_space = _TEXT
    action_space = _TEXT

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        split: str | None = None,
        max_steps: int = 50,
        on_broken: OnBroken = "skip",
    ) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps: {max_steps} is not at least 1")
        self.root = games_folder(data)
        self.split = split
        self.max_steps = max_steps
        self.on_broken: OnBroken = on_broken
        self._engine = import_engine("rwml_lightning.envs.alfworld.engine").make_engine()
        self._game: str | None = None
        self._content: Mapping[str, Any] = {}

    @cached_property
    def index(self) -> GameIndex:
        """All games of the folder, scanned when first asked for."""
        return scan_games(self.root, self.on_broken)

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task ids by split."""
        return self.index.tasks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start a game.

        Args:
            seed: Draws the game where ``options`` names none; play itself has no chance in it.
            options: ``{"task": id}`` names the game.

        Raises:
            ValueError: No such task, or a game file that does not play; the message names it.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        self._load(task if task is not None else self._draw())
        state = self._engine.reset()
        self._num_steps = 0
        room, mark, task_text = state["feedback"].removeprefix(_BANNER).partition(_TASK_MARK)
        if not mark:
            raise ValueError(f"game {self._game!r} states no task ('{_TASK_MARK}...')")
        self._task_text, observation = task_text.strip(), room.strip()
        self._seen = revealed(observation)
        self._admissible = list(state["admissible_commands"])
        return observation, self._info(state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act. An action that is not admissible changes nothing and is answered with "Nothing happens."."""
        assert self._game is not None, "reset() comes before step()"
        valid = action.strip() in self._admissible
        state, score, won = self._engine.step(action)
        observation = state["feedback"].strip()
        self._num_steps += 1
        self._admissible = list(state["admissible_commands"])
        knowable = is_knowable(self._seen, observation)
        self._seen |= revealed(observation)
        info = self._info(state)
        info.update(valid=valid, kind=transition_kind(action, observation), knowable=knowable)
        return observation, float(score), bool(won), not won and self._num_steps >= self.max_steps, info

    def walkthrough(self) -> tuple[str, ...]:
        """An expert's solution of the current game, for collecting data, to be asked for after a reset: the stored one, or where
        none is stored the planner's, which takes seconds; empty where there is none."""
        assert self._game is not None, "reset() comes before walkthrough()"
        return tuple(self._content.get("walkthrough") or self._engine.plan())

    def close(self) -> None:
        """Free the engine's library."""
        self._engine.close()
        self._game = None

    def _info(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "admissible_actions": [action for action in self._admissible if action != "help"],
            "task": self._task_text,
            "game": self._game,
            "task_type": self._task_type,
            "won": bool(state["won"]),
        }

    def _draw(self) -> str:
        tasks = self.tasks
        if self.split is not None and self.split not in tasks:
            raise ValueError(
                f"split: no game of split {self.split!r} in {str(self.root)!r}; there are {', '.join(tasks)}"
            )
        names = tasks[self.split] if self.split is not None else [game.task_id for game in self.index.games]
        return names[int(self.np_random.integers(len(names)))]

    def _load(self, task: str) -> None:
        if task == self._game:
            return
        self._game = None
        path = self.root / task / GAME_FILE
        if not path.is_file() or not path.resolve().is_relative_to(self.root):
            near = difflib.get_close_matches(task, [game.task_id for game in self.index.games], n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(f"task: no game {task!r} in {str(self.root)!r}{hint}")
        self._content = read_game(path)
        try:
            self._engine.load(self._content)
        except Exception as error:  # TextWorld and Fast Downward raise anything at all on a malformed game
            raise ValueError(f"{path}: the game does not load: {error!r}") from error
        self._game, self._task_type = Path(task).as_posix(), task_type(path.parent)
