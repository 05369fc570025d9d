"""Prompts for actions, as token ids that are never decoded and encoded again, and the parser of the answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rwml_lightning.answers import read_reply
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import check_fields, render_history, shorten
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Turn

_SYSTEM = (
    "You act in a text environment to solve a task. Think briefly inside <think></think>, then write one action "
    "inside <action></action>."
)
_USER = """\
Task: {task}
{history}Current observation: {observation}
Admissible actions: {actions}"""
_REPLY = """\
Current observation: {observation}
Admissible actions: {actions}"""
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_MAX_ACTION_CHARS = 1000  # an environment might quote a longer text back into the prompt


@dataclass(frozen=True)
class ActionPrompt:
    """Template of the prompts for an action.

    Args:
        layout: ``window`` writes a new prompt at every turn, with the last ``history_turns`` turns as text. ``conversation``
            continues with the tokens of the previous turn, sampled tokens included, so that an episode is one growing
            sequence: the model still sees its earlier observations and thoughts, and the prefix tree computes them once.
            ``chat`` is like ``conversation``, but shows the environment's own chat messages and tools through the tokenizer's
            chat template; the complete answer without its thinking is the action.
        history_turns: Maximum number of earlier turns in ``window``.
        max_observation_chars: Maximum number of characters of an observation; a longer one is shortened in the middle.
        system: System message, with the fields ``{task}`` and ``{instructions}`` (for an environment with rules); empty for
            none.
        user: First user message, with the optional fields ``{task}``, ``{history}`` (for ``window``), ``{observation}`` and
            ``{actions}``. ``chat`` uses it only if the environment begins with no message.
        reply: Later user messages of ``conversation``, with ``{task}``, ``{observation}`` and ``{actions}``.
        answer: Answer in imitation labels, with ``{action}`` and, for demonstrations with thoughts, ``{thinking}``.
    """

    layout: Literal["window", "conversation", "chat"] = "window"
    history_turns: int = 2
    max_observation_chars: int = 4000
    system: str = _SYSTEM
    user: str = _USER
    reply: str = _REPLY
    answer: str = "<think>{thinking}</think>\n<action>{action}</action>"

    def __post_init__(self) -> None:
        check_fields("prompt.system", self.system, {"task", "instructions"})
        check_fields("prompt.user", self.user, {"task", "history", "observation", "actions"})
        check_fields("prompt.reply", self.reply, {"task", "observation", "actions"})
        check_fields("prompt.answer", self.answer, {"action", "thinking"})

    def encode(self, chat: ChatFormat, view: View, so_far: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return the prompt token ids of one turn.

        Args:
            chat: Chat format of the policy.
            view: View of the episode's state.
            so_far: Prompt and completion of the previous turn, which ``conversation`` and ``chat`` continue.
        """
        fields = {
            "task": chat.quote(view.task),
            "observation": self._shown(chat, view.observation),
            "actions": chat.quote(", ".join(view.admissible)),
        }
        messages = [
            {"role": message["role"], "content": self._shown(chat, message["content"])}
            for message in view.messages
        ]
        if self.layout != "window" and so_far is not None:
            if self.layout == "conversation":
                messages = [{"role": "user", "content": self.reply.format(**fields)}]
            tail = chat.encode_reply(messages)
            return so_far + (tail[1:] if tail and tail[0] == so_far[-1] else tail)
        system = self.system.format(task=fields["task"], instructions=chat.quote(view.instructions))
        if self.layout == "chat":
            messages = messages or [{"role": "user", "content": self.user.format(history="", **fields)}]
            return chat.encode(system, messages, view.tools)
        recent = view.history[-self.history_turns :] if self.history_turns and self.layout == "window" else ()
        turns = [Turn(chat.quote(turn.observation), chat.quote(turn.action)) for turn in recent]
        return chat.encode_user(system, self.user.format(history=render_history(turns), **fields))

    def check(self, chat: ChatFormat) -> None:
        """Raise a ValueError if the chat template cannot show the messages of the layout. Call it before anything is played."""
        user, tool = ({"role": role, "content": "x"} for role in ("user", "tool"))
        chat.encode("x" if self.system else "", [user])
        if self.layout != "window":
            chat.encode_reply([user])
        if self.layout == "chat":
            chat.encode_reply([tool])
            chat.encode_reply([tool, tool])

    def parse(self, text: str, in_thinking: bool = False) -> tuple[str, str]:
        """Return (action, thinking) of a completion; see :func:`rwml_lightning.answers.read_reply` for the arguments."""
        if self.layout != "chat":
            return parse_action(text, in_thinking)
        thinking, said = read_reply(text, in_thinking)
        found = _ACTION.search(said)
        return (found.group(1) if found else said).strip(), thinking

    def _shown(self, chat: ChatFormat, text: str) -> str:
        return chat.quote(shorten(text, self.max_observation_chars))


def parse_action(text: str, in_thinking: bool = False) -> tuple[str, str]:
    """Return (action, thinking) of a completion. Without ``<action>`` tags, the last line is the action."""
    thinking, said = read_reply(text, in_thinking)
    found = _ACTION.search(said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    action = found.group(1).strip() if found else (lines[-1] if lines else "")
    return " ".join(action.split())[:_MAX_ACTION_CHARS], thinking
