"""Transitions, and a world of a few sentences that a tiny model can learn."""

from __future__ import annotations

from typing import Any

from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.schema import Transition

ACTION_PROMPT = WorldModelPrompt(history_turns=0, system="", user="{action}")
VERBS = {
    "take": "You take the {}.",
    "open": "The {} is open.",
    "clean": "The {} shines.",
    "push": "It moves.",
}
OBJECTS = ("apple", "bowl", "desk", "lamp", "mug", "pan", "safe", "sofa", "cup", "pen")


def make_transition(number: int = 0, **changes: Any) -> Transition:
    """Make a transition with distinct texts."""
    fields: dict[str, Any] = {
        "transition_id": f"t{number}",
        "environment": "test",
        "game": f"g{number}",
        "task": "tidy up",
        "history": (),
        "observation": f"You are in room {number}.",
        "action": f"go to door {number}",
        "next_state": f"You stand at door {number}.",
    }
    return Transition(**{**fields, **changes})


def make_world() -> list[Transition]:
    """Make 40 transitions of four verbs and ten objects. Transitions of the last two objects are held out."""
    return [
        make_transition(
            transition_id=f"{verb}-{name}",
            game=name,
            action=f"{verb} {name}",
            next_state=answer.format(name),
            kind=verb,
            split="validation" if name in OBJECTS[-2:] else "train",
        )
        for verb, answer in VERBS.items()
        for name in OBJECTS
    ]
