"""Messages from widgets to the app."""

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
    """Reports an error, which the run bar shows."""

    text: str


@contextmanager
def reported(sender: MessagePump) -> Iterator[None]:
    """Post a :class:`Problem` if the run store cannot be read; the rest of the block is then skipped."""
    try:
        yield
    except TraceError as error:
        sender.post_message(Problem(str(error)))


@dataclass
class AskWhatIf(Message):
    """Asks for the what-if screen.

    Args:
        start: Question to the child process; its answer is the first state.
    """

    start: Mapping[str, Any]
