"""What a policy can see when it is to act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwml_lightning.envs import Message
from rwml_lightning.schema import Turn


@dataclass(frozen=True)
class View:
    """What a policy can see when it is to act.

    Args:
        task: Task text.
        history: All earlier turns.
        observation: Current state text.
        admissible: Actions that the environment names; empty where it names none.
        messages: The current state as chat messages; at the beginning there may be none.
        instructions: How it is to behave, where the environment has rules.
        tools: Schemas of the tools that it can call, as chat templates take them.
    """

    task: str
    history: tuple[Turn, ...] = ()
    observation: str = ""
    admissible: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    instructions: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
