"""Share of weights that a stage changed. The paper finds sparse changes for RWML but not for next-state SFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

import lightning as L
from rich.table import Table
from torch import Tensor
from typing_extensions import override

from rwml_callbacks.analysis import Analysis, Measurement
from rwml_lightning.changed_weights import (
    Change,
    change_shares,
    compare_weights,
    render_changes,
    starting_weights,
)
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.weights import checkpoint_tensors


class WeightChange(Analysis):
    """Measure the share of scalars that a stage changed by more than a tolerance, by layer and module.

    A scalar counts as changed when |w' - w| > tolerance * max(|w'|, |w|) (arXiv 2602.05842). The initial weights are
    read from the stage's own starting checkpoint, one tensor at a time, and adapters are merged. Metrics:
    ``change/all``, ``change/q``, ``change/mlp``, ...

    Args:
        tolerance: Largest relative change that counts as unchanged (paper: 1e-3).
        every_n_steps: See :class:`Analysis`.

    Raises:
        ValueError: The starting checkpoint lacks a weight. Raised at the first step, before any training.

    Example::

        >>> from rwml_callbacks import WeightChange
        >>> trainer = L.Trainer(callbacks=[WeightChange(every_n_steps=50)])
    """

    name: ClassVar[str] = "weight_change"

    def __init__(self, tolerance: float = 1e-3, every_n_steps: int | None = None) -> None:
        super().__init__(every_n_steps)
        if not tolerance >= 0:
            raise ValueError(f"WeightChange.tolerance is {tolerance}; it must not be negative")
        self.tolerance = tolerance
        self._start: Mapping[str, Tensor] | None = None

    @override
    def measure(self, trainer: L.Trainer, module: PolicyModule) -> Measurement:
        if self._start is None:
            self._start = starting_weights(module.model, module.init_from)
        changes = compare_weights(
            self._start, checkpoint_tensors(module.policy, module.generator_tensors()), self.tolerance
        )
        metrics = {f"change/{name}": share for name, share in change_shares(changes).items()}
        return Measurement(metrics, [asdict(change) for change in changes])

    @override
    def render(self, last: Measurement) -> Table:
        return render_changes([Change(**row) for row in last.details])
