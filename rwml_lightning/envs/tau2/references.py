"""What is known about a task beside playing it: its reference solution, who its user is, calls that anyone could make."""

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
    """The task's reference solution as actions of the agent.

    With a user, what the user is to do is asked for in a line that :class:`ScriptedUser` understands, and the last message holds
    what is to be communicated.
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
    told = (criteria and criteria.communicate_info) or ()
    return [
        *actions,
        Action(" ".join(["All done.", *(f"{one}." for one in told), f"{GOODBYE.capitalize()}!"])),
    ]


def background(domain: str, task: Task, solo: bool) -> str:
    """What whoever predicts the next state reads: the domain and who the user is, not what they want (arXiv 2602.05842)."""
    if solo:
        return f"{domain}. {(task.ticket or '').strip()}"
    told = task.user_scenario.instructions
    known = (told.known_info or "").strip() if isinstance(told, StructuredUserInstructions) else ""
    return f"{domain}. The user was told: {known}" if known else domain


def predictable(message: Mapping[str, str]) -> str:
    """What is to be predicted of a message: the schema of a tool's JSON, the text of anything else."""
    return reply_schema(message["content"]) if message["role"] == "tool" else message["content"]


@cache
def simple_calls(domain: str, calls: CallFormat) -> tuple[str, ...]:
    """Calls of solo mode that need no argument but what their schema lists, without the one that ends the episode."""
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
