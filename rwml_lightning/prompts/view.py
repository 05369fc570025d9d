"""The view of an episode's state from which a policy chooses an action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwml_lightning.envs import Message
from rwml_lightning.schema import Turn


@dataclass(frozen=True)
class View:
    """Everything that a policy sees when it chooses an action.

    Args:
        task: Task text.
        history: All earlier turns.
        observation: Current state text.
        admissible: Admissible actions that the environment lists; empty if it lists none.
        messages: Current state as chat messages; may be empty at the start.
        instructions: Rules of behaviour, if the environment has any.
        tools: Schemas of the available tools, in the format of chat templates.
    """

    task: str
    history: tuple[Turn, ...] = ()
    observation: str = ""
    admissible: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    instructions: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
