"""Domains of tau2-bench: tasks, splits, tools, and environments with separate databases."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from tau2.data_model.tasks import RewardType, Task
from tau2.environment.environment import Environment
from tau2.environment.tool import Tool, as_tool
from tau2.registry import registry

from rwml_lightning.envs.tau2.databases import isolate
from rwml_lightning.envs.tau2.messages import STOP

SOLO_DOMAINS = ("mock", "telecom", "telecom-workflow")


def done() -> str:
    """Call this function when you are done with the task."""
    return STOP


def domains() -> list[str]:
    """Return the names of the engine's domains that have tasks."""
    return [name for name in registry.get_domains() if name in registry.get_task_sets()]


@cache
def tasks_of(domain: str) -> dict[str, Task]:
    """Return all tasks of a domain by id."""
    return {task.id: task for task in registry.get_tasks_loader(domain)(None)}


@cache
def splits_of(domain: str) -> dict[str, list[str]]:
    """Return task ids by the benchmark's splits. A domain without splits (``mock``) has all its tasks in ``train``."""
    loader = registry.get_task_splits_loader(domain)
    return {"train": list(tasks_of(domain))} if loader is None else loader()


@cache
def databases(domain: str) -> tuple[Any, Any]:
    """Return the databases of agent and user as loaded from disk. Episodes must not change them."""
    environment = registry.get_env_constructor(domain)()
    tools, user_tools = environment.tools, environment.user_tools
    return getattr(tools, "db", None), getattr(user_tools, "db", None)


@cache
def tool_schemas(domain: str, solo: bool) -> tuple[dict[str, Any], ...]:
    """Return the schemas of the agent's tools. In solo mode these include the user's tools and ``done``, which ends the episode."""
    environment = make_environment(domain, solo)
    tools = environment.get_tools()
    if solo:
        tools += environment.get_user_tools() if environment.user_tools is not None else []
        tools.append(as_tool(done))
    return tuple(tool.openai_schema for tool in tools)


@cache
def user_tools(domain: str) -> list[Tool] | None:
    """Return the user's tools for the prompt of a user model. The environment of the episode executes the calls."""
    environment = make_environment(domain)
    return None if environment.user_tools is None else environment.get_user_tools()


def make_environment(domain: str, solo: bool = False) -> Environment:
    """Make the environment of a domain with separate databases."""
    constructor = registry.get_env_constructor(domain)
    accepted = inspect.signature(constructor).parameters
    given = {
        name: isolate(base)
        for name, base in zip(("db", "user_db"), databases(domain), strict=True)
        if base is not None and name in accepted
    }
    environment = constructor(**given)
    if solo:
        # The same as set_solo_mode, which would also compare the names of all tools at every reset.
        environment.solo_mode = True
        environment.policy = _solo_policy(domain)
    return environment


@cache
def _solo_policy(domain: str) -> str:
    return registry.get_env_constructor(domain)(solo_mode=True).get_policy()


def can_play(domain: str, task_id: str, solo: bool) -> bool:
    """Return whether the environment can play a task.

    The task must exist, and its reward must not need a judge model. In solo mode it must also have a ticket and no earlier
    conversation.
    """
    task = tasks_of(domain).get(task_id)
    if task is None or (
        task.evaluation_criteria and RewardType.NL_ASSERTION in task.evaluation_criteria.reward_basis
    ):
        return False
    return not solo or (bool(task.ticket) and not (task.initial_state and task.initial_state.message_history))
