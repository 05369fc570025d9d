"""One conversation on tau2-bench's own engine, stepped message by message in the caller's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tau2.agent.base import LocalAgent
from tau2.data_model.message import (
    AssistantMessage,
    Message,
    MultiToolMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from tau2.data_model.simulation import TerminationReason
from tau2.data_model.tasks import Task
from tau2.environment.tool import Tool
from tau2.orchestrator.orchestrator import Orchestrator, Role
from tau2.user.user_simulator import DummyUser

from rwml_lightning.envs.tau2.domains import done, make_environment, tool_schemas, user_tools
from rwml_lightning.envs.tau2.messages import STOP, Action, Call, write_action
from rwml_lightning.envs.tau2.reward import reward_of
from rwml_lightning.envs.tau2.users import ScriptedUser, ServedUser, UserModel

_ENDED_WELL = (TerminationReason.AGENT_STOP, TerminationReason.USER_STOP)


class GymAgent(LocalAgent[list[Message]]):
    """Agent that sends the message in ``next_message``. The engine checks the class name in solo mode."""

    def __init__(self, tools: list[Tool], domain_policy: str, solo: bool) -> None:
        super().__init__(tools, domain_policy)
        self.solo = solo
        self.next_message: AssistantMessage | None = None

    def get_init_state(self, message_history: list[Message] | None = None) -> list[Message]:
        return list(message_history or ())

    def generate_next_message(
        self, message: Any, state: list[Message]
    ) -> tuple[AssistantMessage, list[Message]]:
        next_message, self.next_message = self.next_message, None
        assert next_message is not None, "next_message is not set"
        return next_message, state

    def is_stop(self, message: AssistantMessage) -> bool:
        """Return whether the agent ends the conversation.

        Only a solo agent can end it. With a user, the user ends it, so an agent cannot earn a reward by stopping at once.
        """
        return self.solo and STOP in (message.content or "")

    def set_seed(self, seed: int) -> None:
        """Ignore the seed: this agent is deterministic."""


@dataclass(frozen=True, slots=True)
class Reply:
    """New messages for the agent after an action.

    Args:
        messages: New messages, oldest first. The tool message of a failed call gives the reason.
        num_calls: Number of tool calls of the action.
        num_errors: Number of these calls that failed.
    """

    messages: tuple[dict[str, str], ...]
    num_calls: int = 0
    num_errors: int = 0


class Conversation:
    """Conversation of one episode of a task.

    Args:
        domain: Name of the domain.
        task: Task of the episode.
        user: User model, any text for the scripted user, or ``None`` for no user (solo mode).
        seed: Seed of the user model.
        max_steps: Number of messages after which the episode is truncated, as the benchmark counts them.
        max_errors: Number of failed tool calls after which the episode is terminated.
    """

    def __init__(
        self,
        domain: str,
        task: Task,
        user: UserModel | str | None,
        seed: int,
        max_steps: int,
        max_errors: int,
    ) -> None:
        self.domain = domain
        self.task = task
        self.solo = user is None
        self.environment = make_environment(domain, self.solo)
        self.agent = GymAgent([], self.environment.get_policy(), self.solo)
        self.user = self._make_user(user)
        self.orchestrator = Orchestrator(
            domain, self.agent, self.user, self.environment, task, max_steps, max_errors, seed, self.solo
        )  # fmt: skip
        self._seen = 0

    def _make_user(self, user: UserModel | str | None) -> DummyUser | ServedUser | ScriptedUser:
        if user is None:
            return DummyUser()
        tools = user_tools(self.domain)
        if isinstance(user, UserModel):
            return ServedUser(user, tools, self.task.user_scenario)
        return ScriptedUser(tools, self.task.user_scenario)

    @property
    def policy(self) -> str:
        """Rules of the domain for the agent."""
        return self.environment.get_policy()

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """Schemas of the agent's tools."""
        return tool_schemas(self.domain, self.solo)

    @property
    def ended(self) -> TerminationReason | None:
        """Reason for the end of the episode, or ``None`` while it runs."""
        return self.orchestrator.termination_reason if self.orchestrator.done else None

    @property
    def was_cut_off(self) -> bool:
        """Whether ``max_steps`` ended the episode."""
        return self.ended is TerminationReason.MAX_STEPS

    def begin(self) -> Reply:
        """Set up the task and get the first message of the user.

        Raises:
            RuntimeError: The user or the limit ended the conversation before the agent's first message.
        """
        if self.solo:  # the engine needs the first action for its setup, so act() initializes it
            return Reply(())
        self.orchestrator.initialize()
        self._run_until_agent_turn()
        if self.ended is not None:
            raise RuntimeError(
                f"task {self.task.id!r}: the conversation ended before the agent's first message ({self.ended.value})"
            )
        return Reply(tuple(visible(self._new_messages())))

    def act(self, action: Action) -> Reply:
        """Send the agent's message and run environment and user until it is the agent's turn again."""
        orchestrator = self.orchestrator
        self.agent.next_message = self._message(action)
        if not self.solo or self._seen:
            orchestrator.step()
        else:
            orchestrator.initialize()
        self._check_limits()
        self._run_until_agent_turn()
        answers = [message for message in self._new_messages() if not isinstance(message, AssistantMessage)]
        own = [one for one in answers if isinstance(one, ToolMessage) and one.requestor == "assistant"]
        messages = visible(answers)
        for message, call in zip(messages[: len(own)], action.calls, strict=False):
            if not call.readable:  # the engine's own error would say only that the tool does not exist
                message["content"] = f"Error: the call cannot be read: {call.arguments['error']}"
        return Reply(tuple(messages), len(own), sum(one.error for one in own))

    def fail(self) -> None:
        """End the episode because the agent broke the rules of the conversation."""
        self.orchestrator.done = True
        self.orchestrator.termination_reason = TerminationReason.AGENT_ERROR

    def reward(self) -> float:
        """Return the benchmark's reward. It is 0 unless the agent or the user ended the episode."""
        if self.ended not in _ENDED_WELL:
            return 0.0
        return reward_of(self.domain, self.task, self.environment, self.orchestrator.trajectory)

    def _message(self, action: Action) -> AssistantMessage:
        if self.solo and any(call.name == done.__name__ for call in action.calls):
            return AssistantMessage(role="assistant", content=STOP, cost=0.0)
        if not action.calls:
            return AssistantMessage(role="assistant", content=action.text, cost=0.0)
        turn = len(self.orchestrator.trajectory)
        calls = [
            ToolCall(id=f"call_{turn}_{number}", name=call.name, arguments=dict(call.arguments))
            for number, call in enumerate(action.calls)
        ]
        return AssistantMessage(role="assistant", tool_calls=calls, cost=0.0)

    def _run_until_agent_turn(self) -> None:
        orchestrator = self.orchestrator
        while not orchestrator.done and orchestrator.to_role != Role.AGENT:
            orchestrator.step()
            self._check_limits()

    def _check_limits(self) -> None:
        """Apply the benchmark's limits, but never between a call and its result.

        The engine applies them in a loop that is not used here.
        """
        orchestrator = self.orchestrator
        if orchestrator.done or orchestrator.to_role == Role.ENV:
            return
        for limit, count, reason in (
            (orchestrator.max_steps, orchestrator.step_count, TerminationReason.MAX_STEPS),
            (orchestrator.max_errors, orchestrator.num_errors, TerminationReason.TOO_MANY_ERRORS),
        ):
            if count >= limit:
                orchestrator.done, orchestrator.termination_reason = True, reason

    def _new_messages(self) -> list[Message]:
        """Return the messages since the last call of this method."""
        trajectory = self.orchestrator.trajectory
        since, self._seen = trajectory[self._seen :], len(trajectory)
        return since


def visible(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the messages that the agent may see, as chat messages. The user's own tool calls and their results are left out."""
    seen: list[dict[str, str]] = []
    for message in messages:
        if isinstance(message, MultiToolMessage):
            seen += visible(message.tool_messages)
        elif isinstance(message, ToolMessage):
            if message.requestor == "assistant":
                seen.append({"role": "tool", "content": message.content or ""})
        elif not (isinstance(message, UserMessage) and message.is_tool_call()):
            seen.append({"role": message.role, "content": _content(message)})
    return seen


def _content(message: Message) -> str:
    calls = getattr(message, "tool_calls", None)
    if not calls:
        return message.content or ""
    return write_action(Action(calls=tuple(Call(call.name, call.arguments) for call in calls)), "json")
