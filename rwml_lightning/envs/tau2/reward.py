"""The benchmark's reward, computed from the final state of an episode without a replay.

The benchmark's evaluator replays the whole conversation in a new environment and hashes whole databases. This module compares the
changes of the databases. ``benchmarks/tau2_engine.py`` checks that both give the same reward.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

from tau2.data_model.message import Message
from tau2.data_model.tasks import EnvAssertion, RewardType, Task
from tau2.environment.environment import Environment
from tau2.evaluator.evaluator_action import ActionEvaluator
from tau2.evaluator.evaluator_communicate import CommunicateEvaluator

from rwml_lightning.envs.tau2.databases import Changes, changes
from rwml_lightning.envs.tau2.domains import databases, make_environment, tasks_of

log = logging.getLogger(__name__)


def reward_of(domain: str, task: Task, environment: Environment, messages: Sequence[Message]) -> float:
    """Compute the benchmark's reward of an episode that its agent or user ended.

    It is the product over the task's reward basis, as in the benchmark's evaluator.
    """
    criteria = task.evaluation_criteria
    if criteria is None:
        return 1.0
    basis = set(criteria.reward_basis)
    reward = 1.0
    # Assertions may change the databases, so the databases are compared first, as in the evaluator.
    if RewardType.DB in basis and (criteria.actions is not None or criteria.env_assertions is not None):
        reward *= _changes(domain, environment) == _wanted_changes(domain, task.id)
    if RewardType.ENV_ASSERTION in basis:
        for assertion in criteria.env_assertions or ():
            reward *= _is_met(environment, assertion)
    if RewardType.ACTION in basis:
        reward *= ActionEvaluator.calculate_reward(task, list(messages)).reward
    if RewardType.COMMUNICATE in basis:
        reward *= CommunicateEvaluator.calculate_reward(task, list(messages)).reward
    return float(reward)


def _is_met(environment: Environment, assertion: EnvAssertion) -> bool:
    try:
        return environment.run_env_assertion(assertion, raise_assertion_error=False)
    except ValueError:  # the assertion uses a missing record; the benchmark's evaluator stops with an error
        return False


@cache
def do_nothing_reward(domain: str, task_id: str) -> float:
    """Return the reward of an agent that ends the episode at once."""
    task = tasks_of(domain)[task_id]
    environment = make_environment(domain)
    _set_up(environment, task)
    history = (task.initial_state and task.initial_state.message_history) or []
    return reward_of(domain, task, environment, history)


@cache
def _wanted_changes(domain: str, task_id: str) -> tuple[Changes, Changes]:
    """Return the changes that the reference solution makes in the databases of agent and user."""
    task = tasks_of(domain)[task_id]
    environment = make_environment(domain)
    _set_up(environment, task)
    for action in (task.evaluation_criteria and task.evaluation_criteria.actions) or ():
        try:
            environment.make_tool_call(action.name, action.requestor, **action.arguments)
        except Exception as error:  # a few reference calls fail, and the evaluator ignores this too
            log.debug("%s/%s: the reference call of %s fails: %s", domain, task_id, action.name, error)
    return _changes(domain, environment)


def _set_up(environment: Environment, task: Task) -> None:
    initial = task.initial_state
    environment.set_state(
        initialization_data=initial and initial.initialization_data,
        initialization_actions=initial and initial.initialization_actions,
        message_history=(initial and initial.message_history) or [],
    )


def _changes(domain: str, environment: Environment) -> tuple[Changes, Changes]:
    base, user_base = databases(domain)
    tools, user_tools = environment.tools, environment.user_tools
    return changes(getattr(tools, "db", None), base), changes(getattr(user_tools, "db", None), user_base)
