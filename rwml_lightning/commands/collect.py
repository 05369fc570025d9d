"""``collect``: transitions in their file, and nothing else."""

from __future__ import annotations

from rwml_lightning.commands.configured import Configured
from rwml_lightning.printable import printable


def collect(configured: Configured) -> None:
    """Roll out, write transitions, nothing else."""
    data = configured.data
    wanted = data.need_predictions()
    if wanted.path.exists():
        said = f"{wanted.path} is there already; name another file in data.predictions.transitions to collect anew"
        print(printable(said))
        return
    wanted.collect(data.environment, data.seed, lambda: data.ask(configured.model))
