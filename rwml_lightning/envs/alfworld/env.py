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

    ``info`` contains after ``reset`` and ``step``:

    - ``admissible_actions``: list of texts, without ``help``, which is accepted but changes nothing
    - ``task``: task text
    - ``game``: task id
    - ``task_type``: task type
    - ``won``: whether the game is won

    and after ``step`` about the last action:

    - ``valid``: whether it was accepted
    - ``kind`` and ``knowable``: see ``kinds``

    Neither ``obs`` nor ``info`` contains the expert's solution. The reward of a step is 1 if it wins the game, else 0. Observations are
    ALFWorld's sentences without banner and task.

    Args:
        data: Folder of ``game.tw-pddl`` files; ``None`` for the folder in ``ALFWORLD_DATA``.
        split: Split from which ``reset`` draws a game if it gets no task; ``None`` for all games.
        max_steps: Number of actions after which an episode is truncated.
        on_broken: Treatment of unreadable game files: ``skip`` leaves them out, ``raise`` raises an error.

    Raises:
        ValueError: An argument is invalid, or the folder does not exist.
        ModuleNotFoundError: ALFWorld is not installed. The message contains the command that installs it.

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
        """Index of all games in the folder, scanned at the first access."""
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
            seed: Seed of the draw of a game if ``options`` has none. The game itself is deterministic.
            options: ``{"task": id}`` chooses the game.

        Raises:
            ValueError: The task does not exist, or its game file cannot be played. The message names the task or file.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        self._load(task if task is not None else self._draw())
        state = self._engine.reset()
        self._num_steps = 0
        room, mark, task_text = state["feedback"].removeprefix(_BANNER).partition(_TASK_MARK)
        if not mark:
            raise ValueError(f"game {self._game!r}: its first text has no task ('{_TASK_MARK}...')")
        self._task_text, observation = task_text.strip(), room.strip()
        self._seen = revealed(observation)
        self._admissible = list(state["admissible_commands"])
        return observation, self._info(state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Execute an action. An action that is not admissible changes nothing and is answered with "Nothing happens."."""
        assert self._game is not None, "call reset() before step()"
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
        """Return an expert's solution of the current game, for data collection. Call it directly after a reset.

        It is the solution in the game file, or if the file has none the planner's, which takes seconds. It is empty if the game has no
        solution.
        """
        assert self._game is not None, "call reset() before walkthrough()"
        return tuple(self._content.get("walkthrough") or self._engine.plan())

    def close(self) -> None:
        """Release the engine's library."""
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
                f"split: no game of split {self.split!r} in {str(self.root)!r}; available: {', '.join(tasks)}"
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
        except Exception as error:  # TextWorld and Fast Downward raise any exception on a malformed game
            raise ValueError(f"{path}: the game does not load: {error!r}") from error
        self._game, self._task_type = Path(task).as_posix(), task_type(path.parent)
