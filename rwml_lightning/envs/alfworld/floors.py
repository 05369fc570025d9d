"""Baseline predictions without a model. Their scores show how much of a model's score needs no knowledge of the world.

The baseline ``template`` writes ALFWorld's answer under the assumption that the action is accepted and every container is empty. It
uses the wording of the game (older: "put X in/on Y", "You arrive at loc 10."; newer: "move X to Y", "You arrive at desk 1.").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rwml_lightning.envs.alfworld.kinds import NOTHING_HAPPENS
from rwml_lightning.schema import Transition

_OPENABLE = ("cabinet", "drawer", "fridge", "microwave", "safe")  # classes that start closed in ALFWorld
_RECEPTACLES = (
    *_OPENABLE,
    "armchair", "bathtubbasin", "bed", "cart", "coffeemachine", "coffeetable", "countertop", "desk", "diningtable", "dresser",
    "garbagecan", "handtowelholder", "laundryhamper", "ottoman", "paintinghanger", "shelf", "sidetable", "sinkbasin", "sofa",
    "stoveburner", "toaster", "toilet", "toiletpaperhanger", "towelholder", "tvstand",
)  # fmt: skip
_PLACE = re.compile(r"(?:You arrive at|You are facing the|On the|The|You (?:open|close) the) ([a-z]+ \d+)")
_ANSWERS = tuple(
    (re.compile(pattern), answer)
    for pattern, answer in (
        (r"take (.+) from (.+)", "You pick up the {0} from the {1}."),
        (r"move (.+) to (.+)", "You move the {0} to the {1}."),
        (r"put (.+) in/on (.+)", "You put the {0} in/on the {1}."),
        (r"open (.+)", "You open the {0}. The {0} is open. In it, you see nothing."),
        (r"close (.+)", "You close the {0}."),
        (r"clean (.+) with (.+)", "You clean the {0} using the {1}."),
        (r"heat (.+) with (.+)", "You heat the {0} using the {1}."),
        (r"cool (.+) with (.+)", "You cool the {0} using the {1}."),
        (r"slice (.+) with (.+)", "You sliced the {0} with the {1}."),
        (r"use (.+)", "You turn on the {0}."),
        (r"inventory", "You are not carrying anything."),
    )
)


def _appearance(receptacle: str) -> str:
    if receptacle.startswith(_OPENABLE):
        return f"The {receptacle} is closed."
    return f"On the {receptacle}, you see nothing."


def fill_template(action: str, observation: str = "") -> str:
    """Predict ALFWorld's answer to an action from the words of the action.

    Args:
        action: Action text.
        observation: Current state. It gives the agent's place and the wording of the game, and no hidden contents.

    Returns:
        Predicted answer; "Nothing happens." for an action of unknown form.
    """
    action = action.strip()
    for pattern, answer in _ANSWERS:
        if match := pattern.fullmatch(action):
            return answer.format(*match.groups())
    verb, _, thing = action.partition(" ")
    if verb == "go" and thing.startswith("to "):
        receptacle = thing.removeprefix("to ")
        place = "loc 1" if re.search(r"\bloc \d+", observation) else receptacle
        return f"You arrive at {place}. {_appearance(receptacle)}"
    if verb == "examine" and thing:
        if thing.split()[0] in _RECEPTACLES:
            return _appearance(thing)
        return f"There's nothing special about {thing}."
    if action == "look":
        places = [place for place in _PLACE.findall(observation) if not place.startswith("loc ")]
        if places:
            return f"You are facing the {places[-1]}. Next to it, you see nothing."
        return "You are in the middle of a room. Looking quickly around you, you see nothing."
    return NOTHING_HAPPENS


FLOORS: Mapping[str, Callable[[Transition], str]] = {
    "copy_observation": lambda transition: transition.observation,
    "nothing_happens": lambda transition: NOTHING_HAPPENS,
    "template": lambda transition: fill_template(transition.action, transition.observation),
}
"""Baseline by name: a function from a transition to the predicted next state. It does not read the true next state."""
