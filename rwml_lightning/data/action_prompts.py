"""What the policy reads before it acts, as token ids that are never decoded and encoded again, and how its answer is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rwml_lightning.data.episodes import View
from rwml_lightning.data.prompts import check_fields, encode_chat, encode_messages, render_history, shorten
from rwml_lightning.envs.chat import without_thinking
from rwml_lightning.rewards.extraction import extract_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
_TOOLS = """\
You can call these tools:
{schemas}
To call one, answer with nothing but
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>"""
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_MAX_ACTION_CHARS = 1000  # more is babble, which an environment might quote back into the prompt
_MARK = "\u241f-completion-\u241f"


@dataclass(frozen=True)
class ActionPrompt:
    """Asks for an action.

    Args:
        layout: ``window`` writes a new prompt at every turn, with the last ``history_turns`` turns as text. ``conversation``
            goes on with the tokens of the turn before, sampled ones included, so that an episode is one growing sequence:
            what it read and thought stays in sight, and the prefix tree computes it once. ``chat`` does so too, and shows the
            environment's own chat messages and tools as the tokenizer's chat template has them; an answer is an action as it
            stands, its thinking removed.
        history_turns: Most earlier turns that ``window`` shows.
        max_observation_chars: Longer observations are cut in the middle.
        system: System message, with the fields ``{task}`` and ``{instructions}`` (of an environment with rules); empty for
            none.
        user: First user message, with the fields ``{task}``, ``{history}`` (of ``window``), ``{observation}`` and
            ``{actions}``, each of which may be left out. In ``chat`` it is there only when the environment begins with no
            message.
        reply: Later user messages of ``conversation``, with ``{task}``, ``{observation}`` and ``{actions}``.
        answer: How imitation writes an action and, where the demonstrations have some, the thinking before it, with
            ``{action}`` and ``{thinking}``.
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

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, view: View, so_far: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """Prompt token ids of one turn.

        Args:
            tokenizer: The policy's.
            view: What it can see.
            so_far: Prompt and completion of the turn before; ``conversation`` and ``chat`` go on from them.
        """
        fields = {
            "task": view.task,
            "observation": shorten(view.observation, self.max_observation_chars),
            "actions": ", ".join(view.admissible),
        }
        messages = [
            {"role": message["role"], "content": shorten(message["content"], self.max_observation_chars)}
            for message in view.messages
        ]
        if self.layout != "window" and so_far is not None:
            if self.layout == "conversation":
                messages = [{"role": "user", "content": self.reply.format(**fields)}]
            tail = reply_ids(tokenizer, messages)
            return so_far + (tail[1:] if tail and tail[0] == so_far[-1] else tail)
        system = self.system.format(task=view.task, instructions=view.instructions)
        if self.layout == "chat":
            messages = messages or [{"role": "user", "content": self.user.format(history="", **fields)}]
            if "tools" in str(tokenizer.chat_template):
                return encode_messages(tokenizer, system, messages, view.tools)
            return encode_messages(tokenizer, _with_tools(system, view.tools), messages)
        recent = view.history[-self.history_turns :] if self.history_turns and self.layout == "window" else ()
        return encode_chat(tokenizer, system, self.user.format(history=render_history(recent), **fields))

    def parse(self, text: str) -> tuple[str, str]:
        """(action, thinking) of an answer."""
        if self.layout == "chat":
            said = without_thinking(text)
            found = _ACTION.search(said)
            return (found.group(1) if found else said).strip(), extract_answer(text).thinking
        return parse_action(text)


def _with_tools(system: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """The system message with what a chat template without tools leaves out."""
    if not tools:
        return system
    schemas = "\n".join(json.dumps(tool) for tool in tools)
    return f"{system}\n\n{_TOOLS.format(schemas=schemas)}".strip()


def reply_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """Tokens between the end of what the policy wrote and where it writes next: its turn's end, what it is answered.

    Raises:
        ValueError: The chat template does not show an assistant's message as it is, so that none can follow on it.
    """
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in messages)
        return tuple(tokenizer.encode(f"\n\n{text}\n", add_special_tokens=False))
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}, *map(dict, messages)]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    _, mark, tail = str(rendered).rpartition(_MARK)
    if not mark:
        raise ValueError(
            "the chat template changes what the assistant wrote, so episodes cannot be conversations; set prompt.layout "
            "to 'window'"
        )
    return tuple(tokenizer.encode(tail, add_special_tokens=False))


def parse_action(text: str) -> tuple[str, str]:
    """(action, thinking) of an answer; without ``<action>`` tags the last line is the action."""
    thinking = extract_answer(text).thinking
    answer = without_thinking(text)
    found = _ACTION.search(answer)
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    action = found.group(1).strip() if found else (lines[-1] if lines else "")
    return " ".join(action.split())[:_MAX_ACTION_CHARS], thinking
