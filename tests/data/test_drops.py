"""The limit of groups that a run may lose."""

from __future__ import annotations

import pytest

from rwml_lightning.data.drops import DropLimit
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, RolloutBatch


def batch(num_kept: int, *dropped: str) -> EpisodeBatch:
    return EpisodeBatch(0, 0, (EpisodeGroup("g", "train", ()),) * num_kept, dropped=dropped)


@pytest.mark.parametrize(("share", "stops"), [(0.5, False), (0.49, True)])
def test_a_run_stops_above_the_share_of_dropped_groups(
    share: float, stops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    limit = DropLimit("data.episodes.max_dropped_share", share)
    lost = batch(0, "a: it is broken")
    assert limit.count(lost) is lost  # a single one stops nothing
    assert caplog.records[-1].getMessage() == "1 groups are left out: a: it is broken"
    if stops:
        message = (
            r"2 of 4 groups were lost, more than data\.episodes\.max_dropped_share \(0\.49\) allows\. Run the same command "
            r"again to continue from the last checkpoint\. The last lost group: b: it hangs"
        )
        with pytest.raises(ValueError, match=message):
            limit.count(batch(2, "b: it hangs"))
        return
    limit.count(batch(2, "b: it hangs"))
    limit.count(batch(4))
    assert len(caplog.records) == 2


def test_a_step_without_groups_counts_as_nothing() -> None:
    assert DropLimit("key", 0.0).count(RolloutBatch(0, 0, ())).groups == ()
