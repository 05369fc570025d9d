"""Replay of a run: the dashboard shows the run as it was after one of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwml_lightning.trace import Step, TraceReader

TICK_SECONDS = 0.5
LONGEST_SECONDS = 60.0
"""Longest duration of a replay; a long run shows several steps per tick to stay below it."""


@dataclass(frozen=True)
class Moment:
    """Position of a replay: the run up to one of its steps.

    Args:
        number: Index of the step among all steps of all stages, from 0.
        step: Last step that is shown.
        last_group: Largest id of a group that is shown.
        last_episode: Largest id of an episode that is shown.
    """

    number: int
    step: Step
    last_group: int
    last_episode: int


def all_steps(reader: TraceReader) -> list[Step]:
    """Return the steps of all stages, stage after stage."""
    return [step for stage in reader.stages() for step in reader.steps(stage.stage)]


def moment_at(reader: TraceReader, steps: Sequence[Step], number: int) -> Moment | None:
    """Return the moment after a step, or ``None`` beyond the last step, which shows the run as it is now."""
    number = max(number, 0)
    if number >= len(steps):
        return None
    return Moment(number, steps[number], *reader.latest_ids(steps[number]))


def stride(num_steps: int) -> int:
    """Return the number of steps per tick."""
    return max(round(num_steps * TICK_SECONDS / LONGEST_SECONDS), 1)
