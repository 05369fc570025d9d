"""One conversation on tau2-bench's own engine, driven message by message in the caller's thread."""

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
    """Says what it was given; the engine lets an agent of this class name alone play without a user."""

    def __init__(self, tools: list[Tool], domain_policy: str, solo: bool) -> None:
        super().__init__(tools, domain_policy)
        self.solo = solo
        self.next_message: AssistantMessage | None = None

    def get_init_state(self, message_history: list[Message] | None = None) -> list[Message]:
        return list(message_history or ())

    def generate_next_message(
        self, message: Any, state: list[Message]
    ) -> tuple[AssistantMessage, list[Message]]:
        said, self.next_message = self.next_message, None
        assert said is not None, "the agent has been given nothing to say"
        return said, state

    def is_stop(self, message: AssistantMessage) -> bool:
        """With a user it is the user who ends the conversation, so that leaving at once earns nothing."""
        return self.solo and STOP in (message.content or "")

    def set_seed(self, seed: int) -> None:
        """Nothing here is random."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent sees after an action.

    Args:
        messages: New messages, oldest first; a tool's says why a call failed.
        num_calls: Tool calls that the action made.
        num_errors: Those of them that failed.
    """

    messages: tuple[dict[str, str], ...]
    num_calls: int = 0
    num_errors: int = 0


class Conversation:
    """One episode of one task.

    Args:
        domain: Name of the domain.
        task: What is to be done.
        user: Who the agent talks to; ``None`` for nobody (solo).
        seed: Seed of the user model.
        max_steps: Messages after which it is cut off, as the benchmark counts them.
        max_errors: Failed tool calls after which it is ended.
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
        """How the agent is to behave."""
        return self.environment.get_policy()

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """Schemas of the agent's tools."""
        return tool_schemas(self.domain, self.solo)

    @property
    def ended(self) -> TerminationReason | None:
        """Why the episode is over, if it is."""
        return self.orchestrator.termination_reason if self.orchestrator.done else None

    @property
    def was_cut_off(self) -> bool:
        """Whether the limit of messages ended it."""
        return self.ended is TerminationReason.MAX_STEPS

    def begin(self) -> Reply:
        """Set up the task and let the user speak first.

        Raises:
            RuntimeError: The user or the limit ended the conversation before the agent had said anything.
        """
        if self.solo:  # the engine asks for the first action while it sets up, so that waits for the action
            return Reply(())
        self.orchestrator.initialize()
        self._go_on()
        if self.ended is not None:
            raise RuntimeError(
                f"task {self.task.id!r}: over before the agent had said anything ({self.ended.value})"
            )
        return Reply(tuple(visible(self._new())))

    def act(self, action: Action) -> Reply:
        """Send the agent's message, and let environment and user answer until it is the agent's turn again."""
        orchestrator = self.orchestrator
        self.agent.next_message = self._message(action)
        if not self.solo or self._seen:
            orchestrator.step()
        else:
            orchestrator.initialize()
        self._check_limits()
        self._go_on()
        answers = [message for message in self._new() if not isinstance(message, AssistantMessage)]
        own = [one for one in answers if isinstance(one, ToolMessage) and one.requestor == "assistant"]
        messages = visible(answers)
        for message, call in zip(messages[: len(own)], action.calls, strict=False):
            if not call.readable:  # the engine knows only that there is no such tool
                message["content"] = f"Error: the call cannot be read: {call.arguments['error']}"
        return Reply(tuple(messages), len(own), sum(one.error for one in own))

    def fail(self) -> None:
        """End the episode for an agent that broke the rules of conversation."""
        self.orchestrator.done = True
        self.orchestrator.termination_reason = TerminationReason.AGENT_ERROR

    def reward(self) -> float:
        """The benchmark's reward; 0 for an episode that neither agent nor user has ended."""
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

    def _go_on(self) -> None:
        orchestrator = self.orchestrator
        while not orchestrator.done and orchestrator.to_role != Role.AGENT:
            orchestrator.step()
            self._check_limits()

    def _check_limits(self) -> None:
        """The benchmark's limits, which the engine applies in a loop of its own; never between a call and its outcome."""
        orchestrator = self.orchestrator
        if orchestrator.done or orchestrator.to_role == Role.ENV:
            return
        for limit, count, reason in (
            (orchestrator.max_steps, orchestrator.step_count, TerminationReason.MAX_STEPS),
            (orchestrator.max_errors, orchestrator.num_errors, TerminationReason.TOO_MANY_ERRORS),
        ):
            if count >= limit:
                orchestrator.done, orchestrator.termination_reason = True, reason

    def _new(self) -> list[Message]:
        """What was said since this was asked last."""
        trajectory = self.orchestrator.trajectory
        since, self._seen = trajectory[self._seen :], len(trajectory)
        return since


def visible(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages that an agent may see, as chat: not what the user does in private with tools of its own."""
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
