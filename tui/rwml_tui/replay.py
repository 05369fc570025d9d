"""Where a replay stands: a run is shown as it was after one of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwml_lightning.trace import Step, TraceReader

TICK_SECONDS = 0.5
LONGEST_SECONDS = 60.0
"""A long run takes several steps at a tick, so that none plays longer."""


@dataclass(frozen=True)
class Moment:
    """A run up to one of its steps.

    Args:
        number: Which of all steps, from 0.
        step: The last that is shown.
        last_group: Largest id of a group that is shown.
        last_episode: Largest id of an episode that is shown.
    """

    number: int
    step: Step
    last_group: int
    last_episode: int


def all_steps(reader: TraceReader) -> list[Step]:
    """The steps of all stages, stage after stage."""
    return [step for stage in reader.stages() for step in reader.steps(stage.stage)]


def moment_at(reader: TraceReader, steps: Sequence[Step], number: int) -> Moment | None:
    """The moment after a step; ``None`` beyond the last one, which is the run as it is now."""
    number = max(number, 0)
    if number >= len(steps):
        return None
    return Moment(number, steps[number], *reader.latest_ids(steps[number]))


def stride(num_steps: int) -> int:
    """Steps at a tick."""
    return max(round(num_steps * TICK_SECONDS / LONGEST_SECONDS), 1)
