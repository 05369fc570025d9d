"""Users that the agent talks to: a language model on a server, or a script without a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tau2.data_model.message import MultiToolMessage, ToolCall, ToolMessage, UserMessage
from tau2.data_model.tasks import StructuredUserInstructions, UserScenario
from tau2.environment.tool import Tool
from tau2.user.base import STOP, UserState, ValidUserInputMessage
from tau2.user.user_simulator import UserSimulator

from rwml_lightning.answers import read_reply
from rwml_lightning.credentials import check_server_url, read_key
from rwml_lightning.envs.tau2.messages import read_action
from rwml_lightning.printable import well_formed

GOODBYE = "goodbye"


class UserModelError(RuntimeError):
    """The user model does not respond or gives no usable answer. This is a failure of the infrastructure, never of the agent."""


@dataclass(frozen=True)
class UserModel:
    """Settings of a language model that plays the user. Requests go through litellm.

    Args:
        model: Served name of the model. Without a ``base_url`` it needs litellm's provider prefix (``openai/...``).
        base_url: URL of an OpenAI-compatible server, including ``/v1``; ``None`` for the provider's own server.
        api_key_env: Name of the environment variable that holds the key. The key itself must not be in a config.
        temperature: Sampling temperature; tau2-bench uses 0.
        max_tokens: Maximum number of tokens of a message.
        timeout_s: Time without a response after which a request fails, in seconds.
        retries: Number of retries after a failed request, or after an answer that is empty, unreadable or ends inside its thinking.
            Each retry has a longer pause before it and another seed.
        extra_body: Additional keys of the request, for example ``{chat_template_kwargs: {enable_thinking: false}}``.
    """

    model: str
    base_url: str | None = "http://127.0.0.1:8000/v1"
    api_key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    timeout_s: float = 60.0
    retries: int = 3
    extra_body: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.retries < 0 or self.max_tokens < 1:
            raise ValueError(
                "user: timeout_s and max_tokens must be above 0, and retries must not be below 0"
            )
        if self.base_url is not None:
            check_server_url(self.base_url, "user.base_url")
        read_key(self.api_key_env, "user.api_key_env")

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for litellm."""
        arguments: dict[str, Any] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "timeout": self.timeout_s,
            "num_retries": 0,  # retries of litellm
            "max_retries": 0,  # retries of the client that litellm uses
        }
        if self.extra_body is not None:
            arguments["extra_body"] = self.extra_body
        if self.base_url is not None:
            arguments |= {"api_base": self.base_url, "api_key": "none"}
        key = read_key(self.api_key_env, "user.api_key_env")
        if key is not None:
            arguments["api_key"] = key
        return arguments

    @property
    def name(self) -> str:
        """Name of the model in litellm's form, with the provider prefix."""
        return self.model if self.base_url is None else f"openai/{self.model.removeprefix('openai/')}"


class ServedUser(UserSimulator):
    """The benchmark's own simulated user on a :class:`UserModel`, with counts of calls and tokens.

    Raises:
        UserModelError: No usable answer after all retries.
    """

    def __init__(self, model: UserModel, tools: list[Tool] | None, scenario: UserScenario) -> None:
        super().__init__(tools, scenario, model.name, model.arguments())
        self.model = model
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    def generate_next_message(
        self, message: ValidUserInputMessage, state: UserState
    ) -> tuple[UserMessage, UserState]:
        num_messages, seed = len(state.messages), self.llm_args.get("seed")
        for attempt in range(self.model.retries + 1):
            if attempt:
                time.sleep(0.5 * 2**attempt)
                self.llm_args["seed"] = None if seed is None else seed + attempt
            try:
                answer = self._ask(message, state)
                break
            except Exception as error:  # litellm raises the exceptions of its providers
                del state.messages[num_messages:]
                last = error
        else:
            where = f"user model {self.model.model!r} at {self.model.base_url or 'its provider'}"
            key = read_key(self.model.api_key_env, "user.api_key_env")
            # Some servers repeat the key in their error.
            error_text = str(last) if key is None else str(last).replace(key, "***")
            first = (error_text.splitlines() or [""])[0][:300]
            raise UserModelError(f"{where} gave no answer: {type(last).__name__}: {first}") from None
        self.llm_args["seed"] = seed
        return answer, state

    def _ask(self, message: ValidUserInputMessage, state: UserState) -> UserMessage:
        self.calls += 1
        answer, _ = super().generate_next_message(message, state)
        usage = answer.usage or {}
        self.prompt_tokens += usage.get("prompt_tokens") or 0
        self.completion_tokens += usage.get("completion_tokens") or 0
        answer.content = well_formed(read_reply(answer.content or "").said).strip() or None
        if not answer.content and not answer.is_tool_call():
            raise ValueError("the answer is empty, or empty after its thinking")
        return answer


class ScriptedUser(UserSimulator):
    """Deterministic user without a model.

    Its first message contains all information of its scenario. If a line of the agent's message is a call of one of the user's own
    tools, the user makes the call and reports the result. It agrees to every other message, and ends the conversation when the agent
    says "goodbye".
    """

    def __init__(self, tools: list[Tool] | None, scenario: UserScenario) -> None:
        super().__init__(tools, scenario)
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    def set_seed(self, seed: int) -> None:
        """Ignore the seed: this user is deterministic."""

    def generate_next_message(
        self, message: ValidUserInputMessage, state: UserState
    ) -> tuple[UserMessage, UserState]:
        self.calls += 1
        has_opened = any(isinstance(one, UserMessage) for one in state.messages)
        state.messages.extend(message.tool_messages if isinstance(message, MultiToolMessage) else [message])
        answer = self._answer(message, has_opened)
        answer.cost = 0.0
        state.messages.append(answer)
        return answer, state

    def _answer(self, message: ValidUserInputMessage, has_opened: bool) -> UserMessage:
        if isinstance(message, ToolMessage):
            return _say(f"Result: {message.content}")
        text = "" if isinstance(message, MultiToolMessage) else message.content or ""
        if not has_opened:
            return _say(opening(self.instructions))
        own = {tool.name for tool in self.tools or ()}
        for number, line in enumerate(text.splitlines()):
            for call in read_action(line).calls:
                if call.name in own:
                    user_call = ToolCall(
                        id=f"user_{number}", name=call.name, arguments=dict(call.arguments), requestor="user"
                    )
                    return UserMessage(role="user", tool_calls=[user_call])
        return _say(STOP if GOODBYE in text.lower() else "Yes, please go ahead.")


def _say(text: str) -> UserMessage:
    return UserMessage(role="user", content=text)


def opening(scenario: UserScenario) -> str:
    """Return the first message of a user that gives all its information at once."""
    instructions = scenario.instructions
    if not isinstance(instructions, StructuredUserInstructions):
        return str(instructions)
    parts = (instructions.reason_for_call, instructions.known_info, instructions.task_instructions)
    return "\n".join(part.strip() for part in parts if part)
