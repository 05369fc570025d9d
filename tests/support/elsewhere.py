"""A real generator in place of a server: it works on a thread beside the update, with weights of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rwml_lightning.generation import HFGenerator
from rwml_lightning.schema import Completion, Sampling


class Elsewhere(HFGenerator):
    """Decodes with a copy of the weights.

    Args:
        model: Model folder.
        pause_s: Time in seconds that each call takes at least.
    """

    elsewhere = True

    def __init__(self, model: str | None = None, pause_s: float = 0.0) -> None:
        super().__init__(model, share_weights=False)
        self.pause_s = pause_s

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        time.sleep(self.pause_s)
        return super().generate(prompts, sampling, seeds)
