"""Limit for the groups that a run may lose to failures."""

from __future__ import annotations

import logging
from typing import Any

from rwml_lightning import parallel

log = logging.getLogger(__name__)


class DropLimit:
    """Counts the groups of steps, and raises an error when too many are lost.

    Args:
        key: Config key of the limit, for the error message.
        share: Largest share of groups that may be lost. A single lost group is always allowed.
    """

    def __init__(self, key: str, share: float) -> None:
        self.key = key
        self.share = share
        self._num_groups = 0
        self._num_dropped = 0

    def count(self, batch: Any) -> Any:
        """Count the groups of a step's batch, and return the batch.

        Args:
            batch: Batch with ``groups``, and ``dropped``, which has one line per lost group.

        Raises:
            ValueError: Too many groups were lost. The message gives the reason for the last one.
        """
        dropped = batch.dropped
        self._num_groups += len(batch.groups) + len(dropped)
        self._num_dropped += len(dropped)
        if dropped and parallel.rank() == 0:
            log.warning("%d groups are left out: %s", len(dropped), "; ".join(dropped))
        if dropped and self._num_dropped > max(1, self.share * self._num_groups):
            raise ValueError(
                f"{self._num_dropped} of {self._num_groups} groups were lost, more than {self.key} ({self.share}) allows. "
                f"Run the same command again to continue from the last checkpoint. The last lost group: {dropped[-1]}"
            )
        return batch
