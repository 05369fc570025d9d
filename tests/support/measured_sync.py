"""A synchronisation of the weights that measures the gap of trainer and generator before and after each update."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rwml_callbacks import WeightSync

from rwml_lightning import parallel
from rwml_lightning.data.datamodule import rollout_data
from rwml_lightning.modules.base import PolicyModule


class MeasuredSync(WeightSync):
    """Measures the gap of trainer and server before and after each update, and writes it on rank 0.

    Args:
        file: JSON lines, one per update.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def sync(self, module: PolicyModule) -> None:
        """Update the server between two measurements."""
        before = parallel.gather(self.measure(module))[0]  # no rank updates while another measures
        start = time.perf_counter()
        super().sync(module)
        row = {"version": module.policy_version, "before": before, "after": self.measure(module)}
        if parallel.rank() == 0:
            with self.file.open("a") as file:
                file.write(json.dumps({**row, "seconds": time.perf_counter() - start}) + "\n")

    def measure(self, module: PolicyModule) -> float | None:
        """Return the largest difference of log-probabilities; ``None`` if the server has the weights of another run."""
        data = rollout_data(module.trainer)
        probe = data.probe_ids()[:32]
        try:
            served = data.generator.score([probe])[0]
        except ValueError:
            return None
        return max(abs(a - b) for a, b in zip(module.score(probe), served, strict=True))
