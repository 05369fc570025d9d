"""Information about a task without playing it: reference solution, description of the user, simple calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from tau2.data_model.tasks import StructuredUserInstructions, Task

from rwml_lightning.envs.tau2.domains import done, tool_schemas
from rwml_lightning.envs.tau2.messages import Action, Call, CallFormat, write_action
from rwml_lightning.envs.tau2.schemas import reply_schema
from rwml_lightning.envs.tau2.users import GOODBYE


def reference(task: Task, solo: bool) -> list[Action]:
    """Return the task's reference solution as actions of the agent.

    With a user, the agent requests each of the user's actions in a line that :class:`ScriptedUser` understands, and its last
    message contains the information to communicate.
    """
    criteria = task.evaluation_criteria
    actions: list[Action] = []
    for step in (criteria and criteria.actions) or ():
        call = Action(calls=(Call(step.name, step.arguments),))
        if step.requestor == "user" and not solo:
            actions.append(Action(f"Please do this on your device:\n{write_action(call, 'python')}"))
        else:
            actions.append(call)
    if solo:
        return [*actions, Action(calls=(Call(done.__name__),))]
    information = (criteria and criteria.communicate_info) or ()
    return [
        *actions,
        Action(" ".join(["All done.", *(f"{one}." for one in information), f"{GOODBYE.capitalize()}!"])),
    ]


def background(domain: str, task: Task, solo: bool) -> str:
    """Return the context for the prediction of next states (arXiv 2602.05842).

    It names the domain and describes the user, without the user's goal. In solo mode it is the domain and the ticket.
    """
    if solo:
        return f"{domain}. {(task.ticket or '').strip()}"
    instructions = task.user_scenario.instructions
    known = ""
    if isinstance(instructions, StructuredUserInstructions):
        known = (instructions.known_info or "").strip()
    return f"{domain}. The user was told: {known}" if known else domain


def predictable(message: Mapping[str, str]) -> str:
    """Return the prediction target of a message: the schema of a tool's JSON, or else the text."""
    return reply_schema(message["content"]) if message["role"] == "tool" else message["content"]


@cache
def simple_calls(domain: str, calls: CallFormat) -> tuple[str, ...]:
    """Return the calls of solo mode that have no required argument, or one with the values listed in its schema.

    The call that ends the episode is left out.
    """
    return tuple(
        write_action(Action(calls=(Call(name, arguments),)), calls)
        for schema in tool_schemas(domain, True)
        if (name := schema["function"]["name"]) != done.__name__
        for arguments in _listed_arguments(schema["function"]["parameters"])
    )


def _listed_arguments(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    required = list(parameters.get("required", ()))
    if not required:
        yield {}
    elif len(required) == 1:
        yield from ({required[0]: value} for value in _listed_values(required[0], parameters))


def _listed_values(name: str, parameters: Mapping[str, Any]) -> list[Any]:
    kind = parameters["properties"][name]
    if "$ref" in kind:
        kind = parameters.get("$defs", {}).get(kind["$ref"].rpartition("/")[2], {})
    return [True, False] if kind.get("type") == "boolean" else list(kind.get("enum", ()))
