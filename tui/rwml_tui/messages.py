"""What widgets tell the app."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from rwml_lightning.trace import TraceError


@dataclass
class Problem(Message):
    """Something could not be done; the bar on top shows it."""

    text: str


@contextmanager
def reported(sender: MessagePump) -> Iterator[None]:
    """Sends a :class:`Problem` when the run store cannot be read, and leaves the rest of the block out."""
    try:
        yield
    except TraceError as error:
        sender.post_message(Problem(str(error)))


@dataclass
class AskWhatIf(Message):
    """Somebody wants to act otherwise; ``start`` is the question whose answer is the state to begin in."""

    start: Mapping[str, Any]
