"""What the DataModule asks of a source, which is what a stage reads: predictions of next states, or episodes."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from rwml_lightning.data.loader import Draw

SourceName = Literal["predictions", "episodes"]
Learns = Literal["samples", "labels"]


class Source(Protocol):
    """Items of a step, and how they become its batch."""

    def check(self) -> None:
        """Raise a ValueError where the chat template cannot show its prompts."""

    def prepare(self, learns: Learns) -> None:
        """Make the files that are missing; ``learns`` says what they are needed for."""

    def set_up(self, stage: str) -> None:
        """Read files and list items for a stage of the trainer (``fit``, ``validate``, ``test``)."""

    def training(self, learns: Learns, stage: str) -> Draw[Any, Any]:
        """Give the items to learn from.

        Args:
            learns: Samples that the policy writes, or labels.
            stage: Name of the module's stage, from which seeds derive.
        """

    def held_out(self) -> Draw[Any, Any]:
        """Give the items to evaluate on."""

    def probe_ids(self) -> list[int]:
        """Give a fixed sequence for comparing generator and trainer; empty where there is none."""

    def close(self) -> None:
        """End what runs beside the trainer."""
