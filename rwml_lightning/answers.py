"""How a completion is read, in every stage: the thinking, what was said after it, and the answer in what was said.

Only what follows the end of the thinking is an answer: a draft in the thinking never is one, however deep it is nested and
wherever the completion was cut off.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_THINKING = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
"""What opens thinking, and what closes it, in the chat templates of different families."""
TAGS = (
    "<think>", "</think>", "<next_state>", "</next_state>", "<action>", "</action>", "<tool_call>", "</tool_call>",
)  # fmt: skip
"""Tags that a model is asked to write."""
_BOUNDARY = re.compile("|".join(map(re.escape, (*_THINKING, *_THINKING.values()))))
_NEXT_STATE = re.compile(r"<next_state>(.*?)</next_state>", re.DOTALL)
_NO_THINKING = re.compile(r"\A<think></think>\n?")


class Reply(NamedTuple):
    """Args:
    thinking: What was thought, for records; several thoughts stand on lines of their own.
    said: What follows the last thinking; empty where the thinking was cut off.
    """

    thinking: str
    said: str


class Answer(NamedTuple):
    """Args:
    thinking: As in :class:`Reply`.
    next_state: Text inside the first ``<next_state>`` of what was said; ``None`` when missing or empty.
    """

    thinking: str
    next_state: str | None


def read_reply(text: str, in_thinking: bool = False) -> Reply:
    """Split a completion into thinking and what was said.

    Thinking may be nested, and ends where as much is closed as was opened; without that, all the rest is thinking. A closing
    tag without an opening one means that the prompt had opened it, and an opening one with which such a completion begins
    repeats the prompt's. What stands before thinking is neither thought nor said.

    Args:
        text: The completion, special tokens included.
        in_thinking: Whether the prompt ends inside thinking (:func:`ends_in_thinking`).
    """
    thoughts: list[str] = []
    depth, start = int(in_thinking), 0
    for tag in _BOUNDARY.finditer(text):
        if tag.group() in _THINKING:
            repeated = depth == 1 and in_thinking and not text[: tag.start()].strip()
            start = start if depth and not repeated else tag.end()
            depth += not repeated
        else:
            depth = max(depth - 1, 0)
            if not depth:
                thoughts.append(text[start : tag.start()])
                start = tag.end()
    if depth:
        thoughts.append(text[start:])
        start = len(text)
    return Reply("\n".join(filter(None, map(str.strip, thoughts))), text[start:])


def extract_answer(text: str, in_thinking: bool = False) -> Answer:
    """Split a completion into thinking and predicted next state; arguments as for :func:`read_reply`.

    The paper does not say what a missing tag earns; here, as in its later re-implementations, no prediction means reward 0.
    """
    thinking, said = read_reply(text, in_thinking)
    found = _NEXT_STATE.search(said)
    return Answer(thinking, (found.group(1).strip() if found else "") or None)


def format_answer(next_state: str, thinking: str = "") -> str:
    """The answer that :func:`extract_answer` reads back; with empty thinking the label of next-state SFT."""
    return f"<think>{thinking}</think>\n<next_state>{next_state}</next_state>"


def ends_in_thinking(prompt: str) -> bool:
    """Whether a prompt ends with a tag that opens thinking, as some chat templates write it for the model."""
    return prompt.rstrip().endswith(tuple(_THINKING))


def after_prompt(answer: str, prompt: str) -> str:
    """An answer to imitate as it goes on from the end of a prompt: thinking that the prompt has opened is closed and not opened
    again, and after thinking that it has closed there is no empty one."""
    tail = prompt.rstrip()
    for opening, closing in _THINKING.items():
        if tail.endswith(opening):
            thinks = answer.startswith("<think>") and "</think>" in answer
            thinking, _, said = answer.removeprefix("<think>").partition("</think>")
            return f"{thinking}{closing}{said}" if thinks else f"{closing}\n{answer}"
        if tail.endswith(closing):
            return _NO_THINKING.sub("", answer)
    return answer
