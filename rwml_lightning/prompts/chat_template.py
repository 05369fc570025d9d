"""A tokenizer's chat template, tested with marks: every message appears in the prompt, or an error says why not."""

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
_TODAY = datetime(2024, 7, 26)  # the default date of Llama's template
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
    """Form of the messages for a template that does not accept them unchanged.

    Args:
        folded: Roles that are converted to user messages: system messages unchanged, tool messages in ``<tool_response>``
            tags.
        merged: Whether consecutive messages of the same role are joined, with an empty line between them.
        in_parts: Whether the content of a message is a list of parts.
    """

    folded: frozenset[str]
    merged: bool
    in_parts: bool

    def arrange(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages in this form."""
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

    The class selects a :class:`Form` for each sequence of roles. It renders messages with marks in place of texts, and takes
    the first form that shows every mark once and in order. A template that writes today's date gets 26 July 2024, so that a
    prompt is the same on every day.

    Args:
        tokenizer: Tokenizer with a chat template.
        template_kwargs: Arguments of the template, such as ``enable_thinking``.

    Raises:
        ValueError: The template does not use an argument, or ``apply_chat_template`` takes the argument itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs
        self._forms: dict[tuple[tuple[str, ...], bool], Form] = {}
        taken = inspect.signature(tokenizer.apply_chat_template).parameters
        for name in template_kwargs:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
                raise ValueError(
                    f"data.chat_template_kwargs names {name!r}, which is not an argument of {self._name}; remove it"
                )

    @property
    def _name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'}"

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Render the prompt up to the start of the completion.

        Raises:
            ValueError: The template does not show every message.
        """
        form = self._form(tuple(message["role"] for message in messages), bool(tools))
        try:
            return self._apply(form.arrange(messages), tools)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"{self._name} refuses the conversation: {_first_line(error)}") from error

    def render_reply(self, messages: Sequence[Message]) -> str:
        """Render the text between the end of an assistant's message and the start of the next completion.

        Raises:
            ValueError: The template does not show the assistant's message unchanged, or not the messages after it.
        """
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ASSISTANT}]
        try:
            rendered = self.render([*said, *messages])
        except ValueError as error:
            raise ValueError(
                f"{error}; or set prompt.layout to 'window', which needs no conversation"
            ) from error
        return rendered.rpartition(_ASSISTANT)[2]

    def shows_tools(self, roles: Sequence[str]) -> bool:
        """Return whether the template shows tool schemas in a conversation of these roles, in any form."""
        try:
            self._form(tuple(roles), with_tools=True)
        except ValueError:
            return False
        return True

    def check(self) -> None:
        """Raise a ValueError if the template has no generation prompt for the assistant."""
        form = self._form(("user",))
        asked = form.arrange([_message("user", 0)])
        if self._apply(asked) != self._apply(asked, generation=False):
            return
        answered = self.render([_message("user", 0), _message("assistant", 1)])
        # Some templates always end the user's turn with the start of the assistant's turn.
        before_answer = _MARK.split(answered)[1]
        if before_answer.split() != _MARK.split(self._apply(asked))[1].split():
            raise ValueError(
                f"{self._name} has no generation prompt: it does not use add_generation_prompt, so the model would have to "
                "write the start of its turn; use another chat template"
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
        instead = "set prompt.system to a text, which comes before it, or " if roles[0] == "assistant" else ""
        raise ValueError(
            f"{self._name} cannot show a conversation of {', '.join(roles)}: it {problems[0]}; {instead}use another chat "
            "template"
        )

    def _problem(
        self, form: Form, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Return the problem of a form with messages of marks, or ``None`` if it shows them correctly."""
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
        """Return whether an assistant's message looks the same as a user message."""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            swapped = [*messages[:place], {**message, "role": "user"}, *messages[place + 1 :]]
            try:
                if self._apply(form._replace(merged=False).arrange(swapped), tools) == text:
                    return True
            except (TemplateError, TypeError):
                continue  # the template distinguishes the two roles
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
    """Return a message with a mark as its text."""
    return {"role": role, "content": f"{MARK_OPEN}{number}{MARK_CLOSE}"}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
