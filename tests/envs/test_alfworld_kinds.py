"""Kinds, knowability and floors, by hand."""

from __future__ import annotations

import pytest

from rwml_lightning.envs.alfworld.floors import FLOORS, fill_template
from rwml_lightning.envs.alfworld.kinds import KINDS, is_knowable, revealed, transition_kind
from rwml_lightning.schema import Transition

ROOM = "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, and a desk 1."


@pytest.mark.parametrize(
    ("action", "next_state", "kind"),
    [
        ("take apple 1 from desk 1", "You pick up the apple 1 from the desk 1.", "state_change"),
        ("take apple 1 from desk 1", "Nothing happens.", "nothing_happens"),
        ("move apple 1 to desk 1", "You move the apple 1 to the desk 1.", "state_change"),
        ("put apple 1 in/on desk 1", "You put the apple 1 in/on the desk 1.", "state_change"),
        ("close fridge 1", "You close the fridge 1.", "state_change"),
        ("use desklamp 1", "You turn on the desklamp 1.", "state_change"),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing.", "navigation"),
        ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see nothing.", "opening"),
        ("inventory", "You are not carrying anything.", "inspection"),
        ("look", "You are facing the desk 1. Next to it, you see nothing.", "inspection"),
        ("examine desk 1", "On the desk 1, you see nothing.", "inspection"),
        ("", "?", "other"),
        ("dance", "You dance.", "other"),
    ],
)
def test_kind(action: str, next_state: str, kind: str) -> None:
    assert transition_kind(action, next_state) == kind
    assert kind in KINDS


def test_only_what_was_never_shown_is_unknowable() -> None:
    states = [
        ROOM,
        "You arrive at cabinet 1. The cabinet 1 is closed.",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1.",
        "You pick up the mug 1 from the cabinet 1.",
        "The cabinet 1 is open. In it, you see nothing.",
        "You arrive at desk 1. On the desk 1, you see nothing.",
        "You move the mug 1 to the desk 1.",
        "You arrive at desk 1. On the desk 1, you see a mug 1.",
        "Nothing happens.",
    ]
    seen = [frozenset[str]().union(*map(revealed, states[:turn])) for turn in range(1, len(states))]
    found = [is_knowable(*pair) for pair in zip(seen, states[1:], strict=True)]
    assert found == [True, False, True, True, False, True, True, True]


def test_older_games_show_a_new_place_on_the_first_visit() -> None:
    seen = revealed(ROOM)
    assert not is_knowable(seen, "You arrive at loc 10. The fridge 1 is closed.")
    assert is_knowable(seen | {"loc 10"}, "You arrive at loc 10. The fridge 1 is closed.")


def test_contents_of_what_can_be_carried() -> None:
    assert "contents of bowl 2" in revealed("This is a normal bowl 2. In it, you see nothing.")


@pytest.mark.parametrize(
    ("action", "observation", "answer"),
    [
        ("take mug 1 from desk 1", "", "You pick up the mug 1 from the desk 1."),
        ("move mug 1 to desk 1", "", "You move the mug 1 to the desk 1."),
        ("put mug 1 in/on desk 1", "", "You put the mug 1 in/on the desk 1."),
        ("open fridge 1", "", "You open the fridge 1. The fridge 1 is open. In it, you see nothing."),
        ("close fridge 1", "", "You close the fridge 1."),
        ("clean mug 1 with sinkbasin 1", "", "You clean the mug 1 using the sinkbasin 1."),
        ("heat mug 1 with microwave 1", "", "You heat the mug 1 using the microwave 1."),
        ("cool mug 1 with fridge 1", "", "You cool the mug 1 using the fridge 1."),
        ("slice apple 1 with knife 1", "", "You sliced the apple 1 with the knife 1."),
        ("use desklamp 1", "", "You turn on the desklamp 1."),
        ("inventory", "", "You are not carrying anything."),
        ("go to drawer 2", "", "You arrive at drawer 2. The drawer 2 is closed."),
        ("go to desk 1", "", "You arrive at desk 1. On the desk 1, you see nothing."),
        (
            "go to desk 1",
            "You arrive at loc 3. The safe 1 is closed.",
            "You arrive at loc 1. On the desk 1, you see nothing.",
        ),
        ("examine mug 1", "", "There's nothing special about mug 1."),
        ("examine shelf 1", "", "On the shelf 1, you see nothing."),
        ("look", ROOM, "You are in the middle of a room. Looking quickly around you, you see nothing."),
        ("look", "You close the safe 1.", "You are facing the safe 1. Next to it, you see nothing."),
        ("sing", "", "Nothing happens."),
    ],
)
def test_template_floor(action: str, observation: str, answer: str) -> None:
    assert fill_template(action, observation) == answer


def test_floors_never_read_the_next_state() -> None:
    transition = Transition("0", "alfworld", "g", "t", (), ROOM, "go to desk 1", next_state="SECRET")
    predictions = {name: floor(transition) for name, floor in FLOORS.items()}
    assert predictions == {
        "copy_observation": ROOM,
        "nothing_happens": "Nothing happens.",
        "template": "You arrive at desk 1. On the desk 1, you see nothing.",
    }
