"""What widgets tell the app."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message


@dataclass
class Problem(Message):
    """Something could not be done; the bar on top shows it."""

    text: str
