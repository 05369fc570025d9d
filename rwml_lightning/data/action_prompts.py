"""What the policy reads before it acts, as token ids that are never decoded and encoded again, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rwml_lightning.data.prompts import check_fields, encode_chat, render_history, shorten
from rwml_lightning.rewards.extraction import extract_answer
from rwml_lightning.schema import Turn

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
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_MARK = "\u241f-completion-\u241f"


@dataclass(frozen=True)
class ActionPrompt:
    """Asks for an action.

    Args:
        layout: ``window`` writes a new prompt at every turn, with the last ``history_turns`` turns as text. ``conversation``
            goes on with the tokens of the turn before, sampled ones included, so that an episode is one growing sequence:
            what it read and thought stays in sight, and the prefix tree computes it once.
        history_turns: Most earlier turns that ``window`` shows.
        max_observation_chars: Longer observations are cut in the middle.
        system: System message; empty for none.
        user: First user message, with the fields ``{task}``, ``{history}`` (of ``window``), ``{observation}`` and
            ``{actions}``, each of which may be left out.
        reply: Later user messages of ``conversation``, with ``{task}``, ``{observation}`` and ``{actions}``.
        answer: How imitation writes an action and, where the demonstrations have some, the thinking before it, with
            ``{action}`` and ``{thinking}``.
    """

    layout: Literal["window", "conversation"] = "window"
    history_turns: int = 2
    max_observation_chars: int = 4000
    system: str = _SYSTEM
    user: str = _USER
    reply: str = _REPLY
    answer: str = "<think>{thinking}</think>\n<action>{action}</action>"

    def __post_init__(self) -> None:
        check_fields("prompt.user", self.user, {"task", "history", "observation", "actions"})
        check_fields("prompt.reply", self.reply, {"task", "observation", "actions"})
        check_fields("prompt.answer", self.answer, {"action", "thinking"})

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: str,
        history: Sequence[Turn],
        observation: str,
        actions: Sequence[str],
        so_far: tuple[int, ...] | None = None,
    ) -> tuple[int, ...]:
        """Prompt token ids of one turn.

        Args:
            tokenizer: The policy's.
            task: Task text.
            history: All earlier turns.
            observation: Current state text.
            actions: Admissible actions.
            so_far: Prompt and completion of the turn before; ``conversation`` goes on from them.
        """
        fields = {
            "task": task,
            "observation": shorten(observation, self.max_observation_chars),
            "actions": ", ".join(actions),
        }
        if self.layout == "conversation" and so_far is not None:
            tail = reply_ids(tokenizer, self.reply.format(**fields))
            return so_far + (tail[1:] if tail and tail[0] == so_far[-1] else tail)
        recent = history[-self.history_turns :] if self.history_turns and self.layout == "window" else ()
        return encode_chat(tokenizer, self.system, self.user.format(history=render_history(recent), **fields))


def reply_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens between the end of what the policy wrote and where it writes next: its turn's end, the user's message.

    Raises:
        ValueError: The chat template does not show an assistant's message as it is, so that none can follow on it.
    """
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(f"\n\n{text}\n", add_special_tokens=False))
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _MARK},
        {"role": "user", "content": text},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
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
    answer = text.split("</think>")[-1]
    found = _ACTION.search(answer)
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    action = found.group(1).strip() if found else (lines[-1] if lines else "")
    return " ".join(action.split())[:200], thinking
