"""The limit of groups that a run may lose."""

from __future__ import annotations

import logging
from typing import Any

from rwml_lightning import parallel

log = logging.getLogger(__name__)


class DropLimit:
    """Counts the groups of whole steps, and stops a run that loses too many.

    Args:
        key: Config key of the limit, for the error.
        share: Largest share of groups that may be lost; a single one never stops a run.
    """

    def __init__(self, key: str, share: float) -> None:
        self.key = key
        self.share = share
        self._num_groups = 0
        self._num_dropped = 0

    def count(self, batch: Any) -> Any:
        """Count the groups of a step's batch, and return it.

        Args:
            batch: Has ``groups``, and in ``dropped`` a line for each group that was lost.

        Raises:
            ValueError: Too many groups were lost; says why the last one was.
        """
        dropped = batch.dropped
        self._num_groups += len(batch.groups) + len(dropped)
        self._num_dropped += len(dropped)
        if dropped and parallel.rank() == 0:
            log.warning("%d groups are left out: %s", len(dropped), "; ".join(dropped))
        if dropped and self._num_dropped > max(1, self.share * self._num_groups):
            raise ValueError(
                f"{self._num_dropped} of {self._num_groups} groups were lost, more than {self.key} ({self.share}) allows. "
                f"The same command goes on from the last checkpoint. The last one: {dropped[-1]}"
            )
        return batch
