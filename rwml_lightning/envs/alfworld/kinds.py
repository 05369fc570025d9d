"""Kind of a transition, and whether its next state could be predicted.

The evaluation reports results for each of these kinds:

- ``state_change``: an accepted take, put, move, close, clean, heat, cool, use or slice
- ``navigation``: an accepted go to
- ``opening``: an accepted open
- ``inspection``: an accepted look, examine, inventory or help
- ``nothing_happens``: the environment answered "Nothing happens."
- ``other``: anything else

A next state is *knowable* if it shows only things that the episode has shown before. Things are the contents of a receptacle (also of
an empty one) and names such as "apple 2", or "loc 10" in games of the older format.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Literal, get_args

Kind = Literal["state_change", "navigation", "opening", "inspection", "nothing_happens", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOTHING_HAPPENS = "Nothing happens."

_KIND_OF_VERB: dict[str, Kind] = {
    **dict.fromkeys(
        ("take", "put", "move", "close", "clean", "heat", "cool", "use", "slice"), "state_change"
    ),
    **dict.fromkeys(("look", "examine", "inventory", "help"), "inspection"),
    "go": "navigation",
    "open": "opening",
}
_CONTENTS = re.compile(
    r"(?:On the ([a-z]+ \d+), you see|The ([a-z]+ \d+) is open\. In it, you see|normal ([a-z]+ \d+)\. In it)"
)
_NAMED_THING = re.compile(r"[a-z]+ \d+")


def transition_kind(action: str, next_state: str) -> Kind:
    """Return the kind of a transition.

    Args:
        action: Action of the agent.
        next_state: Answer of the environment.
    """
    if next_state.strip() == NOTHING_HAPPENS:
        return "nothing_happens"
    verb = action.split(maxsplit=1)[0] if action.strip() else ""
    return _KIND_OF_VERB.get(verb, "other")


def revealed(text: str) -> frozenset[str]:
    """Return everything that a state text shows: names of things, and "contents of X" for each receptacle with visible contents."""
    contents = {f"contents of {next(filter(None, groups))}" for groups in _CONTENTS.findall(text)}
    return frozenset(contents.union(_NAMED_THING.findall(text)))


def is_knowable(seen: Set[str], next_state: str) -> bool:
    """Return whether a next state shows only things that were seen before.

    Args:
        seen: Union of ``revealed`` over the states of the episode so far.
        next_state: Answer of the environment.
    """
    return revealed(next_state) <= seen
