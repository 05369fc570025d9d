"""A tokenizer's chat template, tried with marks before it is trusted: every message reaches the prompt, or a line says why not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from rwml_lightning.prompts.control_tokens import MARK_CLOSE, MARK_OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
_TODAY = datetime(2024, 7, 26)  # what Llama's own template falls back to
_MARK = re.compile(f"{MARK_OPEN}[^{MARK_CLOSE}]*{MARK_CLOSE}")
_ASSISTANT, _TOOL = f"{MARK_OPEN}assistant{MARK_CLOSE}", f"{MARK_OPEN}tool{MARK_CLOSE}"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "x",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]},
    },
}  # fmt: skip


class Form(NamedTuple):
    """How messages are given to a template that does not take them as they are.

    Args:
        folded: Roles whose messages become messages of the user: the system's as it is, a tool's reply in
            ``<tool_response>`` tags.
        merged: Whether messages of the same role that follow on each other become one, with an empty line between.
        in_parts: Whether content is a list of parts.
    """

    folded: frozenset[str]
    merged: bool
    in_parts: bool

    def arrange(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages in this form."""
        arranged: list[dict[str, Any]] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if role in self.folded:
                content = f"<tool_response>\n{content}\n</tool_response>" if role == "tool" else content
                role = "user"
            if self.merged and arranged and arranged[-1]["role"] == role:
                arranged[-1]["content"] += f"\n\n{content}"
            else:
                arranged.append({"role": role, "content": content})
        if self.in_parts:
            arranged = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in arranged]
        return arranged


_FOLDINGS = (
    (frozenset[str](), False), (frozenset[str](), True), (frozenset({"system"}), True), (frozenset({"tool"}), True),
    (frozenset({"system", "tool"}), True),
)  # fmt: skip
_FORMS = [Form(*folding, in_parts) for folding, in_parts in product(_FOLDINGS, (False, True))]


class ChatTemplate:
    """Renders conversations with a tokenizer's chat template.

    Which form a conversation needs is found with marks in place of its texts, once for each sequence of roles: the first
    :class:`Form` under which every mark is in the result, once and in order. A template that writes today's date gets 26 July
    2024, so that a prompt is the same on every day.

    Args:
        tokenizer: Has the template.
        template_kwargs: Arguments of the template, such as ``enable_thinking``.

    Raises:
        ValueError: An argument that the template does not have, or that is not the template's to take.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs
        self._forms: dict[tuple[tuple[str, ...], bool], Form] = {}
        taken = inspect.signature(tokenizer.apply_chat_template).parameters
        for name in template_kwargs:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
                raise ValueError(
                    f"data.chat_template_kwargs names {name!r}, which is no argument of {self._name}; leave it out"
                )

    @property
    def _name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'}"

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt up to where the model begins to write.

        Raises:
            ValueError: A message does not reach it.
        """
        form = self._form(tuple(message["role"] for message in messages), bool(tools))
        try:
            return self._apply(form.arrange(messages), tools)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"{self._name} refuses the conversation: {_first_line(error)}") from error

    def render_reply(self, messages: Sequence[Message]) -> str:
        """What stands between the end of an assistant's message and where the model writes next.

        Raises:
            ValueError: The template does not show the assistant's message as it is, or not what follows on it.
        """
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ASSISTANT}]
        try:
            rendered = self.render([*said, *messages])
        except ValueError as error:
            raise ValueError(
                f"{error}; an episode cannot be a conversation, so set prompt.layout to 'window'"
            ) from error
        return rendered.rpartition(_ASSISTANT)[2]

    def shows_tools(self, roles: Sequence[str]) -> bool:
        """Whether a conversation of these roles has a place for schemas of tools, in any form."""
        try:
            self._form(tuple(roles), with_tools=True)
        except ValueError:
            return False
        return True

    def check(self) -> None:
        """Raise a ValueError where the template does not say that the assistant is to write now."""
        form = self._form(("user",))
        asked = form.arrange([_message("user", 0)])
        if self._apply(asked) != self._apply(asked, generation=False):
            return
        answered = self.render([_message("user", 0), _message("assistant", 1)])
        before_answer = _MARK.split(answered)[
            1
        ]  # some templates end the user's turn with what begins the assistant's
        if before_answer.split() != _MARK.split(self._apply(asked))[1].split():
            raise ValueError(
                f"{self._name} has no generation prompt: it does not use add_generation_prompt, so the model would have to "
                "write the beginning of its own turn; take another chat template"
            )

    def _form(self, roles: tuple[str, ...], with_tools: bool = False) -> Form:
        key = (roles, with_tools)
        if key not in self._forms:
            self._forms[key] = self._find_form(roles, [_PROBE_TOOL] if with_tools else [])
        return self._forms[key]

    def _find_form(self, roles: tuple[str, ...], tools: Sequence[Mapping[str, Any]]) -> Form:
        messages = [_message(role, number) for number, role in enumerate(roles)]
        problems = []
        for form in _FORMS:
            problem = self._problem(form, messages, tools)
            if problem is None:
                return form
            problems.append(problem)
        instead = (
            "give prompt.system a text, which would stand before it, or " if roles[0] == "assistant" else ""
        )
        raise ValueError(
            f"{self._name} cannot show a conversation of {', '.join(roles)}: it {problems[0]}; {instead}take another chat "
            "template"
        )

    def _problem(
        self, form: Form, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """What is wrong with messages of marks in a form, if anything."""
        try:
            text = self._apply(form.arrange(messages), tools)
        except (TemplateError, TypeError) as error:
            return f"refuses it: {_first_line(error)}"
        if tools and _TOOL not in text:
            return "does not show the tools"
        found = [mark for mark in _MARK.findall(text) if mark != _TOOL]
        lost = [message["role"] for message in messages if found.count(message["content"]) != 1]
        if lost:
            return f"does not show the message of role {lost[0]!r} once"
        if found != [message["content"] for message in messages]:
            return "changes the order of the messages"
        if self._hides_assistant(form, messages, tools, text):
            return "shows a message of role 'assistant' as the user's"
        return None

    def _hides_assistant(
        self, form: Form, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str
    ) -> bool:
        """Whether a message of the assistant's looks the same as if the user had written it."""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            swapped = [*messages[:place], {**message, "role": "user"}, *messages[place + 1 :]]
            try:
                if self._apply(form._replace(merged=False).arrange(swapped), tools) == text:
                    return True
            except (TemplateError, TypeError):
                continue  # it tells them apart
        return False

    def _apply(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = (), generation: bool = True
    ) -> str:
        schemas: Any = list(tools) or None
        arguments: Any = {"strftime_now": _TODAY.strftime, **self.template_kwargs}
        return str(
            self.tokenizer.apply_chat_template(
                messages, tools=schemas, tokenize=False, add_generation_prompt=generation, **arguments
            )
        )


def _message(role: str, number: int) -> dict[str, str]:
    """A message with a mark for its text."""
    return {"role": role, "content": f"{MARK_OPEN}{number}{MARK_CLOSE}"}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
