"""Interface of a source, from which a stage reads its data: predictions of next states, or episodes."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from rwml_lightning.data.loader import Draw

SourceName = Literal["predictions", "episodes"]
Learns = Literal["samples", "labels"]


class Source(Protocol):
    """Provides the items of a step and makes batches of them."""

    def check(self) -> None:
        """Raise a ValueError if the chat template cannot show the prompts of the source."""

    def prepare(self, learns: Learns) -> None:
        """Create missing files for training on ``learns``: samples or labels."""

    def set_up(self, stage: str) -> None:
        """Read files and list items for a stage of the trainer (``fit``, ``validate``, ``test``)."""

    def training(self, learns: Learns, stage: str) -> Draw[Any, Any]:
        """Return the items for training.

        Args:
            learns: ``samples`` that the policy writes, or ``labels``.
            stage: Name of the module's stage, from which seeds derive.
        """

    def held_out(self) -> Draw[Any, Any]:
        """Return the items for evaluation."""

    def probe_ids(self) -> list[int]:
        """Return a fixed token sequence for comparing generator and trainer; empty if the source has none."""

    def close(self) -> None:
        """Stop the processes that the source has started."""
