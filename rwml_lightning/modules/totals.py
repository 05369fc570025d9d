"""Sums of a GRPO update over its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Totals:
    """Accumulates token means over the micro-batches of a step."""

    @classmethod
    def of_all(cls, ranks: Sequence[Totals]) -> Totals:
        """Add up what the ranks counted."""
        totals = cls()
        for own in ranks:
            totals.loss += own.loss
            if own.label_loss is not None:
                totals.label_loss = (totals.label_loss or 0.0) + own.label_loss
            for name, count in own._counts.items():
                totals._sums[name] = totals._sums.get(name, 0.0) + own._sums[name]
                totals._counts[name] = totals._counts.get(name, 0) + count
        return totals

    def __init__(self) -> None:
        self.loss = 0.0
        self.label_loss: float | None = None
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().sum())
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def metrics(self) -> dict[str, float]:
        means = {f"train/{name}": total / self._counts[name] for name, total in self._sums.items()}
        labels = {} if self.label_loss is None else {"train/label_loss": self.label_loss}
        return {"train/loss": self.loss, **labels, **means}
