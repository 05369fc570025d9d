"""Top line with the run's name, its state and the age of its last record."""

from __future__ import annotations

import time

from rich.text import Text
from textual.widgets import Static

from rwml_lightning.trace import Step, TraceReader
from rwml_tui.replay import Moment
from rwml_tui.text import age, one_line

STYLES = {
    "running": "bold green",
    "paused": "bold yellow",
    "finished": "bold",
    "stopped": "bold yellow",
    "failed": "bold red",
}
SHORTEST_NAME = 16
"""Cells of a long name that are always shown, even if the state is cut off for them."""


def seconds_left(reader: TraceReader, step: Step, total: int, steps_back: int = 20) -> float | None:
    """Estimate the seconds until the stage ends from its last steps; ``None`` if it has fewer than two."""
    last = reader.steps(step.stage, step.step - steps_back)
    if len(last) < 2 or last[-1].step == last[0].step:
        return None
    pace = (last[-1].time - last[0].time) / (last[-1].step - last[0].step)
    return pace * max(total - step.step, 0)


class RunBar(Static):
    """Shows a run's state; an old last record reveals a dead trainer.

    Args:
        name: Name of the run.
    """

    def __init__(self, name: str) -> None:
        super().__init__(markup=False)
        self.run_name = name

    def show(
        self, reader: TraceReader, follow: bool, moment: Moment | None = None, num_steps: int = 0
    ) -> None:
        """Read the state again and show it.

        Args:
            reader: The run.
            follow: Whether the dashboard checks for new records.
            moment: Position of the replay, if one is active.
            num_steps: Number of steps of all stages, shown during a replay.
        """
        self.remove_class("problem")
        run, step = reader.run(), reader.latest_step()
        parts = [Text(), one_line(run.status, style=STYLES.get(run.status, ""))]
        if moment is not None:
            parts.append(Text(f"replay {moment.number + 1}/{num_steps}", "bold reverse"))
            step = moment.step
        if step is None:
            parts.append(Text("no step yet"))
        else:
            total = {stage.stage: stage.total_steps for stage in reader.stages()}.get(step.stage)
            parts += [one_line(step.stage), Text(f"step {step.step}/{'?' if total is None else total}")]
            left = None if total is None or not run.alive or moment else seconds_left(reader, step, total)
            parts += [] if left is None else [Text(f"{age(left)} left")]
        parts.append(Text(f"last record {age(time.time() - run.heartbeat)} ago"))
        parts += [Text("following")] if follow and moment is None else []
        parts += [one_line(run.detail, limit=200)] if run.detail else []
        state = Text("  ").join(parts)
        name = one_line(self.run_name, limit=len(self.run_name))  # the bar has 2 cells of padding
        name.truncate(max(self.app.size.width - 2 - state.cell_len, SHORTEST_NAME), overflow="ellipsis")
        self.update(name + state)

    def show_error(self, message: str) -> None:
        """Show an error in place of the state."""
        self.add_class("problem")
        self.update(one_line(message, limit=500))
