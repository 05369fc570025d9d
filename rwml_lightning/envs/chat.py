"""Observations that are chat messages, beside those that are text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]
"""A chat message: ``role`` and ``content``."""


def as_messages(obs: Any) -> tuple[Message, ...]:
    """An observation as chat messages; a text is one of the user."""
    if isinstance(obs, str):
        return ({"role": "user", "content": obs},)
    return tuple(obs)


def as_text(messages: Sequence[Message]) -> str:
    """Messages as one text: a single one stands for itself, several are told apart by their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
