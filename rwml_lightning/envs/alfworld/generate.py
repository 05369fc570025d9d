"""Generation of ALFWorld games, for machines without ALFWorld's data.

Engine, domain, grammar, goals and planner are ALFWorld's own. Rooms and object positions are random. **Scores on generated games are
not ALFWorld scores** and must not be compared with published scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from rwml_lightning.envs.alfworld.difficulty import Difficulty, as_difficulty
from rwml_lightning.envs.alfworld.extra import import_engine
from rwml_lightning.envs.alfworld.games import GAME_FILE
from rwml_lightning.envs.worker import Failure, Worker, collect
from rwml_lightning.files import replacing

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_MAX_ATTEMPTS = 20
_JOBS_AT_ONCE = 4


@dataclass(frozen=True)
class Recipe:
    """Settings that determine a set of generated games, except the number of games.

    Args:
        root: Folder of all splits.
        seed: Seed of the set.
        split: ``train`` or ``validation``. No floor plan is in both.
        task_types: Task types, used in turn.
        difficulty: Limits on the contents of a room.
    """

    root: Path
    seed: int
    split: Literal["train", "validation"]
    task_types: tuple[str, ...]
    difficulty: Difficulty

    def task_type(self, index: int) -> str:
        """Return the task type of a game."""
        return self.task_types[index % len(self.task_types)]

    def trial(self, index: int) -> str:
        """Return the folder name of a game."""
        level = self.difficulty
        size = f"r{level.max_receptacles}o{level.max_objects}c{level.max_copies}"
        return f"trial_gen_{size}_s{self.seed}_{index:05d}"


def generate_games(
    root: str | os.PathLike[str],
    num_games: int,
    seed: int = 0,
    split: Literal["train", "validation"] = "train",
    task_types: Sequence[str] = TASK_TYPES,
    difficulty: str | Difficulty = "small",
    num_workers: int | None = None,
    timeout_s: float = 120.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate games that the planner can win. Each game file contains its solution as ``walkthrough``.

    The same arguments give the same games, and game ``i`` does not depend on ``num_games``. Existing games are kept, so an interrupted
    run can be continued. If the planner crashes or exceeds ``timeout_s``, the game is drawn again. This is the only case in which two
    machines may give different games.

    Scores on generated games are not ALFWorld scores.

    Args:
        root: Output folder. A game is written to ``root/split/TASK/TRIAL/game.tw-pddl``, together with ``traj_data.json`` and
            ``initial_state.pddl``.
        num_games: Number of games, including existing games.
        seed: Seed of the set.
        split: ``train`` or ``validation``, with different scenes as in ALFWorld.
        task_types: Some of ALFWorld's six task types, used in turn.
        difficulty: ``minimal``, ``tiny``, ``small``, ``full``, or custom limits.
        num_workers: Number of processes; ``None`` for the number of cores, at most 4.
        timeout_s: Time limit of one draw, in seconds.
        progress: Function that is called with (number of finished games, ``num_games``).

    Returns:
        Task ids, relative to ``root``, in the order of the game index.

    Raises:
        ValueError: An argument is invalid.
        ModuleNotFoundError: ALFWorld is not installed. The message contains the command that installs it.
        RuntimeError: A game could not be generated in 20 draws.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split: {split!r} is neither 'train' nor 'validation'")
    unknown = [task_type for task_type in task_types if task_type not in TASK_TYPES]
    if unknown or not task_types:
        raise ValueError(f"task_types: {', '.join(unknown) or 'empty'}; available: {', '.join(TASK_TYPES)}")
    if num_games < 1:
        raise ValueError(f"num_games: {num_games} is not at least 1")
    import_engine("alfworld")
    recipe = Recipe(Path(root).resolve(), seed, split, tuple(task_types), as_difficulty(difficulty))
    made = _find_existing(recipe, num_games)
    report = progress or (lambda done, wanted: None)
    report(len(made), num_games)
    if len(made) < num_games:
        _generate_missing(
            recipe, num_games, made, num_workers or min(4, os.cpu_count() or 1), timeout_s, report
        )
    return [made[index] for index in range(num_games)]


def _find_existing(recipe: Recipe, num_games: int) -> dict[int, str]:
    folders = {
        path.parent.name: path.parent for path in (recipe.root / recipe.split).glob(f"*/*/{GAME_FILE}")
    }
    found = {index: folders.get(recipe.trial(index)) for index in range(num_games)}
    return {
        index: folder.relative_to(recipe.root).as_posix()
        for index, folder in found.items()
        if folder is not None and folder.parent.name.startswith(f"{recipe.task_type(index)}-")
    }


def _generate_missing(
    recipe: Recipe,
    num_games: int,
    made: dict[int, str],
    num_workers: int,
    timeout_s: float,
    report: Callable[[int, int], None],
) -> None:
    # Number of failed draws by index of the game.
    missing = {index: 0 for index in range(num_games) if index not in made}
    workers: list[Worker] = []
    try:
        while missing:
            workers = [worker for worker in workers if worker.alive]
            jobs = list(missing.items())[: num_workers * _JOBS_AT_ONCE]
            num_lacking = min(num_workers, len(jobs)) - len(workers)
            workers += [Worker(f"{__name__}:GameBuilder", recipe) for _ in range(num_lacking)]
            for place, worker in enumerate(workers):
                worker.submit({job[0]: job for job in jobs[place :: len(workers)]}, timeout_s)
            for key, answer in collect(workers):
                index = int(str(key))
                if isinstance(answer, str):
                    made[index] = answer
                    del missing[index]
                    report(len(made), num_games)
                elif not (isinstance(answer, Failure) and answer.reason == "lost"):
                    missing[index] = _next_draw(
                        answer, missing[index], f"game {index} ({recipe.task_type(index)})"
                    )
    finally:
        for worker in workers:
            worker.kill()


def _next_draw(answer: Failure | None, draw: int, game: str) -> int:
    """Return the number of the next draw, after a draw without a solution or a planner that crashed or exceeded its time limit."""
    problem = "the planner found no solution" if answer is None else answer.error
    if isinstance(answer, Failure) and answer.reason == "raised":
        raise RuntimeError(f"{game} cannot be generated: {problem}")
    if draw + 1 >= _MAX_ATTEMPTS:
        raise RuntimeError(f"{game}: no playable game in {_MAX_ATTEMPTS} draws; last problem: {problem}")
    return draw + 1


class GameBuilder:
    """Request handler in a worker process, which draws, solves and writes games.

    Args:
        recipe: Settings of the games.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._scenes = import_engine("rwml_lightning.envs.alfworld.scenes")
        self._engine = import_engine("rwml_lightning.envs.alfworld.engine").make_engine()
        info = import_engine("alfworld.info")
        self._domain = Path(info.ALFRED_PDDL_PATH).read_text(encoding="utf-8")
        self._grammar = Path(info.ALFRED_TWL2_PATH).read_text(encoding="utf-8")

    def __call__(self, job: tuple[int, int]) -> str | None:
        """Generate a game.

        Args:
            job: (index of the game, number of the draw).

        Returns:
            Task id of the game; ``None`` if this draw has no solution.
        """
        index, attempt = job
        recipe = self._recipe
        task_type, trial = recipe.task_type(index), recipe.trial(index)
        rng = Random(f"{recipe.seed}/{recipe.split}/{task_type}/{recipe.difficulty}/{index}/{attempt}")
        scene = self._scenes.draw_scene(task_type, recipe.split, recipe.difficulty, rng)
        content: dict[str, Any] = {
            "pddl_domain": self._domain,
            "grammar": self._grammar.replace("UNKNOWN GOAL", self._scenes.task_sentence(scene, rng)),
            "pddl_problem": self._scenes.scene_problem(scene, trial),
        }
        content["walkthrough"] = self._solve(content)
        content["solvable"] = bool(content["walkthrough"])
        if not content["solvable"]:
            return None
        name = f"{task_type}-{scene.target}-None-{scene.goal or scene.lamp}-{scene.floor_plan}"
        folder = recipe.root / recipe.split / name / trial
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "initial_state.pddl").write_text(content["pddl_problem"], encoding="utf-8")
        (folder / "traj_data.json").write_text(
            json.dumps(_trajectory(scene, trial), indent=1), encoding="utf-8"
        )
        with replacing(folder / GAME_FILE) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
        return folder.relative_to(recipe.root).as_posix()

    def _solve(self, content: dict[str, Any]) -> list[str]:
        """Return the planner's solution, after playing it to check that it wins. It is empty without one, or if the game starts won."""
        self._engine.load(content)
        if self._engine.reset()["won"]:
            return []
        plan = list(self._engine.plan())
        won = False
        for command in plan:
            _, _, won = self._engine.step(command)
        return plan if won else []


def _trajectory(scene: Any, trial: str) -> dict[str, Any]:
    """Return the content of ``traj_data.json``, which ALFWorld's own loaders read."""
    return {
        "task_id": trial,
        "task_type": scene.task_type,
        "scene": {"floor_plan": f"FloorPlan{scene.floor_plan}", "scene_num": scene.floor_plan},
        "pddl_params": {
            "object_target": scene.target,
            "parent_target": scene.goal,
            "toggle_target": scene.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "turk_annotations": {"anns": []},
    }
