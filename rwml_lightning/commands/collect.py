"""``collect``: write the file of transitions without training."""

from __future__ import annotations

from rwml_lightning import parallel
from rwml_lightning.commands.configured import Configured
from rwml_lightning.printable import printable


def collect(configured: Configured) -> None:
    """Collect rollouts and write the file of transitions, without training."""
    data = configured.data
    predictions = data.need_predictions()
    if predictions.path.exists():
        message = f"{predictions.path} already exists; to collect again, name another file in data.predictions.transitions"
        print(printable(message))
        return

    def make() -> str:
        predictions.collect(data.environment, data.seed, lambda: data.ask(configured.model))
        return str(predictions.path)

    parallel.agree("collected", make)
