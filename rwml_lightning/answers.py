"""Parsing of completions in every stage: the thinking, the reply after it, and the answer in the reply.

Only text after the end of the thinking can be an answer. A draft inside the thinking is never an answer, even if thinking is
nested or the completion was cut off.
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
"""Opening and closing tags of thinking in the chat templates of different model families."""
TAGS = (
    "<think>", "</think>", "<next_state>", "</next_state>", "<action>", "</action>", "<tool_call>", "</tool_call>",
)  # fmt: skip
"""Tags that the prompts request in answers."""
_BOUNDARY = re.compile("|".join(map(re.escape, (*_THINKING, *_THINKING.values()))))
_NEXT_STATE = re.compile(r"<next_state>(.*?)</next_state>", re.DOTALL)
_NO_THINKING = re.compile(r"\A<think></think>\n?")


class Reply(NamedTuple):
    """Completion split into thinking and reply.

    Args:
        thinking: Text of the thinking, for records; several thoughts are on separate lines.
        said: Text after the last thinking; empty if the thinking was cut off.
    """

    thinking: str
    said: str


class Answer(NamedTuple):
    """Completion split into thinking and predicted next state.

    Args:
        thinking: As in :class:`Reply`.
        next_state: Text inside the first ``<next_state>`` of the reply; ``None`` if missing or empty.
    """

    thinking: str
    next_state: str | None


def read_reply(text: str, in_thinking: bool = False) -> Reply:
    """Split a completion into thinking and reply.

    Thinking may be nested. It ends when every opening tag has a closing tag; otherwise the rest of the text is thinking. A
    closing tag without an opening tag means that the prompt opened the thinking. If the prompt opened it and the completion
    begins with an opening tag, that tag repeats the prompt's tag. Text before the thinking belongs to neither part.

    Args:
        text: Decoded completion, special tokens included.
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
    """Split a completion into thinking and predicted next state; see :func:`read_reply` for the arguments.

    The paper does not define the reward of a missing tag. Here, as in its later re-implementations, it is 0.
    """
    thinking, said = read_reply(text, in_thinking)
    found = _NEXT_STATE.search(said)
    return Answer(thinking, (found.group(1).strip() if found else "") or None)


def format_answer(next_state: str, thinking: str = "") -> str:
    """Format an answer that :func:`extract_answer` can parse; with empty thinking, it is the label of next-state SFT."""
    return f"<think>{thinking}</think>\n<next_state>{next_state}</next_state>"


def ends_in_thinking(prompt: str) -> bool:
    """Return whether a prompt ends with an opening tag of thinking. Some chat templates write this tag for the model."""
    return prompt.rstrip().endswith(tuple(_THINKING))


def after_prompt(answer: str, prompt: str) -> str:
    """Adapt an answer to imitate to the end of its prompt.

    If the prompt has opened the thinking, the answer only closes it. If the prompt has closed the thinking, the answer has no
    empty thinking.
    """
    tail = prompt.rstrip()
    for opening, closing in _THINKING.items():
        if tail.endswith(opening):
            thinks = answer.startswith("<think>") and "</think>" in answer
            thinking, _, said = answer.removeprefix("<think>").partition("</think>")
            return f"{thinking}{closing}{said}" if thinks else f"{closing}\n{answer}"
        if tail.endswith(closing):
            return _NO_THINKING.sub("", answer)
    return answer
