"""Random scenes of generated ALFWorld games, and their form as PDDL problems.

Rooms, furniture and affordances come from the AI2-THOR floor plans in the ``alfworld`` package. The positions of objects are random.
Import this module through ``extra.import_engine``.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from alfworld.gen import constants
from alfworld.gen.goal_library import gdict as goal_library

from rwml_lightning.envs.alfworld.difficulty import Difficulty

_FURNITURE = constants.RECEPTACLES - constants.MOVABLE_RECEPTACLES_SET
_CAN_HOLD: dict[str, set[str]] = constants.VAL_RECEPTACLE_OBJECTS
_LAMPS = ("DeskLamp", "FloorLamp")
_LAMP_STANDS = (
    "CoffeeTable",
    "CounterTop",
    "Desk",
    "DiningTable",
    "Dresser",
    "Shelf",
    "SideTable",
    "TVStand",
)
_START_CLOSED = ("Cabinet", "Drawer", "Fridge", "Microwave", "Safe")
_TREATMENTS = {  # task type: required affordance of the object, furniture that it is used with
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
_PLACING = ("pick_and_place_simple", "pick_two_obj_and_place")
# A class of furniture without positions in the floor plan gives one piece; stove burners are four.
_STOVE_BURNERS = 4
# The start location has no furniture, so that the game starts "in the middle of a room".
_ENTRANCE = "loc|-15|10|1|30"
# Constants of ALFWorld's domain. A problem must declare them even if the scene has no such things.
_DECLARED_FURNITURE = {"SinkBasin", "Fridge", "Microwave"}
_DECLARED_OBJECTS = {"Knife", "ButterKnife"}


@dataclass(frozen=True)
class Scene:
    """Room with furniture, objects and a task.

    Args:
        task_type: One of ALFWorld's six task types.
        floor_plan: Number of the AI2-THOR floor plan.
        target: Class of the object to handle.
        goal: Class of the furniture to bring the target to; empty for ``look_at_obj_in_light``.
        lamp: Class of the lamp to use in ``look_at_obj_in_light``; empty otherwise.
        furniture: Furniture class by furniture id.
        objects: Object class by object id.
        place_of: Furniture id by object id.
    """

    task_type: str
    floor_plan: int
    target: str
    goal: str
    lamp: str
    furniture: dict[str, str]
    objects: dict[str, str]
    place_of: dict[str, str]


def draw_scene(task_type: str, split: str, difficulty: Difficulty, rng: Random) -> Scene:
    """Draw a scene in which the task can be solved and is not solved yet.

    Args:
        task_type: One of ALFWorld's six task types.
        split: ``train`` uses ALFWorld's floor plans for training, ``validation`` its floor plans for tests.
        difficulty: Limits on the contents of the room.
        rng: Random number generator.
    """
    numbers = constants.TRAIN_SCENE_NUMBERS if split == "train" else constants.TEST_SCENE_NUMBERS
    rooms = [constants.SCENE_TYPE[room] for room in sorted(constants.GOALS_VALID[task_type])]
    floor_plans = [number for number in numbers if any(number in room for room in rooms)]
    while True:  # the loop ends, since most floor plans allow most tasks
        floor_plan = rng.choice(floor_plans)
        goal = _draw_goal(task_type, floor_plan, rng)
        if goal is not None:
            return _furnish(task_type, floor_plan, *goal, difficulty, rng)


@lru_cache(maxsize=256)
def _floor_plan(number: int) -> tuple[frozenset[str], dict[str, str]]:
    """Return the classes in a floor plan, and the class by id of all furniture with a known position."""
    folder = importlib.resources.files("alfworld.gen") / "layouts"
    classes = frozenset(json.loads((folder / f"FloorPlan{number}-objects.json").read_text()))
    ids = json.loads((folder / f"FloorPlan{number}-openable.json").read_text())
    # "Sink|x|y|z|SinkBasin" is a SinkBasin, "Drawer|x|y|z" a Drawer
    placed = {name: name.split("|")[4 if name.count("|") == 4 else 0] for name in sorted(ids)}
    return classes, {name: kind for name, kind in placed.items() if kind in _FURNITURE}


def _furniture_classes(number: int) -> set[str]:
    classes, placed = _floor_plan(number)
    return (classes & _FURNITURE) | set(placed.values())


def _draw_goal(task_type: str, number: int, rng: Random) -> tuple[str, str, str, set[str]] | None:
    """Draw target, goal, lamp and required furniture; return ``None`` if the floor plan does not allow the task."""
    classes, _ = _floor_plan(number)
    furniture = _furniture_classes(number)
    affordance, appliance = _TREATMENTS.get(task_type, ("", ""))
    lamps = sorted(classes.intersection(_LAMPS)) if task_type == "look_at_obj_in_light" else [""]
    stands = sorted(furniture.intersection(_LAMP_STANDS))
    if (appliance and appliance not in furniture) or not lamps or not stands:
        return None
    targets = [
        kind
        for kind in _portable(classes, furniture)
        if not affordance or kind in constants.VAL_ACTION_OBJECTS[affordance]
    ]
    options = []
    for target in targets:
        holders = sorted(kind for kind in furniture if target in _CAN_HOLD.get(kind, ()))
        goals = [""] if lamps != [""] else [kind for kind in holders if kind != appliance]
        for goal in goals:
            starts = [kind for kind in holders if task_type not in _PLACING or kind != goal]
            options += [(target, goal, start) for start in starts]
    if not options:
        return None
    target, goal, start = rng.choice(options)
    lamp = rng.choice(lamps)
    needed = {start, goal, appliance, rng.choice(stands) if lamp else ""} - {""}
    return target, goal, lamp, needed


def _portable(classes: frozenset[str], furniture: set[str]) -> list[str]:
    holdable = set().union(*(_CAN_HOLD.get(kind, set()) for kind in furniture))
    return sorted((classes & holdable) - _FURNITURE - set(_LAMPS))


def _furnish(
    task_type: str,
    number: int,
    target: str,
    goal: str,
    lamp: str,
    needed: set[str],
    difficulty: Difficulty,
    rng: Random,
) -> Scene:
    classes, placed = _floor_plan(number)
    used_ids = set(placed)
    available = dict(placed)
    for kind in sorted(_furniture_classes(number) - set(placed.values())):
        for _ in range(_STOVE_BURNERS if kind == "StoveBurner" else 1):
            available[_new_id(kind, used_ids, rng)] = kind
    order = rng.sample(sorted(available), len(available))
    first = [next(name for name in order if available[name] == kind) for kind in sorted(needed)]
    kept = (first + [name for name in order if name not in first])[
        : max(difficulty.max_receptacles, len(first))
    ]
    furniture = {name: available[name] for name in sorted(kept)}

    objects: dict[str, str] = {}
    place_of: dict[str, str] = {}

    def put(kind: str, holders: list[str]) -> None:
        name = _new_id(kind, used_ids, rng)
        objects[name] = kind
        place_of[name] = rng.choice(holders)

    def holders_of(kind: str) -> list[str]:
        away_from_goal = kind == target and task_type in _PLACING
        holds = (name for name, place in furniture.items() if kind in _CAN_HOLD.get(place, ()))
        return [name for name in holds if not (away_from_goal and furniture[name] == goal)]

    min_copies = 2 if task_type == "pick_two_obj_and_place" else 1
    for _ in range(rng.randint(min_copies, max(min_copies, difficulty.max_copies))):
        put(target, holders_of(target))
    for kind in [lamp] if lamp else sorted(classes.intersection(_LAMPS)):
        stands = [name for name, place in furniture.items() if place in _LAMP_STANDS]
        if stands:
            put(kind, stands)
    others = [kind for kind in _portable(classes, set(furniture.values())) if kind != target]
    for kind in rng.sample(others, len(others)):
        for _ in range(rng.randint(1, difficulty.max_copies)):
            if len(objects) < difficulty.max_objects:
                put(kind, holders_of(kind))
    return Scene(task_type, number, target, goal, lamp, furniture, objects, place_of)


def _new_id(kind: str, used_ids: set[str], rng: Random) -> str:
    """Draw an unused id in AI2-THOR's form, with a random position."""
    while True:
        place = "|".join(f"{rng.choice('+-')}{rng.uniform(0, 3.5):05.2f}" for _ in range(3))
        name = f"{kind.removesuffix('Basin')}|{place}|{kind}" if kind.endswith("Basin") else f"{kind}|{place}"
        if name not in used_ids:
            used_ids.add(name)
            return name


def scene_problem(scene: Scene, name: str) -> str:
    """Write a scene as a PDDL problem of ALFWorld's domain.

    Args:
        scene: Scene to write.
        name: Name of the problem.
    """
    furniture, objects = scene.furniture, scene.objects
    location = {place: f"loc|{i % 12}|{i // 12}|{i % 4}|{(i % 3) * 30}" for i, place in enumerate(furniture)}
    furniture_classes = sorted({*furniture.values(), *_DECLARED_FURNITURE})
    object_classes = sorted({*objects.values(), *_DECLARED_OBJECTS})
    declared = [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in object_classes),
        *(f"{kind}Type - rtype" for kind in furniture_classes),
        *(f"{thing} - object" for thing in objects),
        *(f"{place} - receptacle" for place in furniture),
        *(f"{spot} - location" for spot in [*location.values(), _ENTRANCE]),
    ]
    objects_by_affordance = constants.VAL_ACTION_OBJECTS
    facts = [
        f"(atLocation agent1 {_ENTRANCE})",
        *(f"(receptacleType {place} {kind}Type)" for place, kind in furniture.items()),
        *(f"(receptacleAtLocation {place} {spot})" for place, spot in location.items()),
        *(f"(openable {place})" for place, kind in furniture.items() if kind in _START_CLOSED),
        *(f"(objectType {thing} {kind}Type)" for thing, kind in objects.items()),
        *(f"(pickupable {thing})" for thing, kind in objects.items() if kind not in _LAMPS),
        *(
            f"(isReceptacleObject {thing})"
            for thing, kind in objects.items()
            if kind in constants.MOVABLE_RECEPTACLES_SET
        ),
        *(
            f"({affordance.lower()} {thing})"
            for affordance in sorted(objects_by_affordance)
            for thing, kind in objects.items()
            if kind in objects_by_affordance[affordance]
        ),
        *(f"(inReceptacle {thing} {place})" for thing, place in scene.place_of.items()),
        *(f"(objectAtLocation {thing} {location[place]})" for thing, place in scene.place_of.items()),
        *(
            f"(canContain {place}Type {kind}Type)"
            for place in furniture_classes
            for kind in object_classes
            if kind in _CAN_HOLD.get(place, ())
        ),
    ]
    head = f"(define (problem {name})\n(:domain alfred)\n(:objects\n" + "\n".join(declared) + "\n)\n"
    body = "(:init\n" + "\n".join(facts) + "\n)\n"
    goal = goal_library[scene.task_type]["pddl"].format(
        obj=scene.target, recep=scene.goal, toggle=scene.lamp, mrecep=""
    )
    # The goal library writes types as "# type" and closes the problem itself.
    return re.sub(r"[A-Za-z]+\|\S+?(?=[\s)])", _mangle, head + body) + goal.replace(" # ", " - ")


def _mangle(match: re.Match[str]) -> str:
    """Write an id in the letters that PDDL allows, in the form that ALFWorld's demangler expects."""
    name = match.group(0)
    for letter, word in (("|", "bar"), ("-", "minus"), ("+", "plus"), (".", "dot"), (",", "comma")):
        name = name.replace(letter, f"_{word}_")
    return name


def task_sentence(scene: Scene, rng: Random) -> str:
    """Draw one of ALFWorld's own sentences for the task, without the full stop."""
    template = rng.choice(goal_library[scene.task_type]["templates"])
    return template.format(obj=scene.target.lower(), recep=scene.goal.lower(), toggle=scene.lamp.lower())
