"""What widgets tell the app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textual.message import Message


@dataclass
class Problem(Message):
    """Something could not be done; the bar on top shows it."""

    text: str


@dataclass
class AskWhatIf(Message):
    """Somebody wants to act otherwise; ``start`` is the question whose answer is the state to begin in."""

    start: Mapping[str, Any]
