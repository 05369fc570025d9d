"""Reads a prediction out of what the model wrote."""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_NEXT_STATE = re.compile(r"<next_state>(.*?)</next_state>", re.DOTALL)


class Answer(NamedTuple):
    """Args:
    thinking: Text inside the first ``<think>``, empty when there is none.
    next_state: Text inside the first ``<next_state>`` after the thinking; ``None`` when missing or empty.
    """

    thinking: str
    next_state: str | None


def extract_answer(text: str) -> Answer:
    """Split a completion into thinking and predicted next state.

    A ``<next_state>`` inside the thinking is a draft and does not count. The paper does not say what a missing tag
    earns; here, as in its later re-implementations, no prediction means reward 0.
    """
    thinking = _THINK.search(text)
    answer = _NEXT_STATE.search(text, thinking.end() if thinking else 0)
    next_state = answer.group(1).strip() if answer else ""
    return Answer(thinking.group(1).strip() if thinking else "", next_state or None)


def format_answer(next_state: str, thinking: str = "") -> str:
    """The answer that :func:`extract_answer` reads back; with empty thinking the label of next-state SFT."""
    return f"<think>{thinking}</think>\n<next_state>{next_state}</next_state>"
