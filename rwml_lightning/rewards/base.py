"""What every next-state reward looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rwml_lightning.schema import Score, Transition


@runtime_checkable
class NextStateReward(Protocol):
    """Scores predictions against what really happened.

    ``success_similarity`` is the similarity above which a prediction counts as right in evaluations.
    """

    success_similarity: float

    def score(self, transitions: Sequence[Transition], predictions: Sequence[str | None]) -> list[Score]:
        """Score a whole step at once.

        Args:
            transitions: What really happened, one per prediction.
            predictions: Predicted next states; ``None`` where the answer had none.

        Returns:
            One score per prediction; reward 0 where there is no prediction.
        """
        ...
