"""Conversion of chat messages to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Message = Mapping[str, str]
"""A chat message with the keys ``role`` and ``content``."""


def as_text(messages: Sequence[Message]) -> str:
    """Join messages to one text. A single message gives its content; several messages give one ``role: content`` line each."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
