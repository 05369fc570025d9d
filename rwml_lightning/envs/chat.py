"""Conversion of observations between text and chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]
"""A chat message with the keys ``role`` and ``content``."""


def as_messages(obs: Any) -> tuple[Message, ...]:
    """Return an observation as chat messages. A text becomes one message of the role ``user``."""
    if isinstance(obs, str):
        return ({"role": "user", "content": obs},)
    return tuple(obs)


def as_text(messages: Sequence[Message]) -> str:
    """Join messages to one text. A single message gives its content; several messages give one ``role: content`` line each."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
