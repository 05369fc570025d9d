"""Progress bars: one for training (reward, similarity, seconds by phase, time left) and one for held-out batches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import override

from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import printable
from rwml_lightning.terminal import Terminal

_PHASES = ("generate", "reward", "env", "update", "sync")


class RolloutProgressBar(ProgressBar):
    """Show a rich progress bar in a terminal, and one plain line per step elsewhere, such as in a log file."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._held_out: TaskID | None = None
        self._enabled = True

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self._task = self._add(trainer, pl_module.stage, pl_module.num_planned_steps, trainer.global_step)

    def on_step_metrics(
        self, trainer: L.Trainer, module: PolicyModule, metrics: Mapping[str, float], batch: Any
    ) -> None:
        """Show the metrics of a step."""
        if not (self._enabled and trainer.is_global_zero):
            return
        text = describe(metrics)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=trainer.global_step, description=text)
        else:
            line = f"{module.stage} {trainer.global_step}/{module.num_planned_steps}  {text}"
            print(printable(line), file=sys.stderr, flush=True)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._held_out = self._add(trainer, "held-out", int(sum(trainer.num_val_batches)))

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._progress is not None and self._held_out is not None:
            self._progress.advance(self._held_out)
        elif self._enabled and trainer.is_global_zero:
            number = int(sum(trainer.num_val_batches[:dataloader_idx])) + batch_idx + 1
            line = f"held-out {number}/{int(sum(trainer.num_val_batches))}"
            print(printable(line), file=sys.stderr, flush=True)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is not None and self._held_out is not None:
            self._progress.remove_task(self._held_out)
            self._held_out = None
        if self._task is None:
            self._stop()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _add(self, trainer: L.Trainer, name: str, total: int, completed: int = 0) -> TaskID | None:
        """Add a bar, if standard error is a terminal."""
        if not (self._enabled and trainer.is_global_zero and sys.stderr.isatty()):
            return None
        if self._progress is None:
            columns = (
                TextColumn("{task.fields[name]}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._progress = Progress(*columns, console=Terminal(stderr=True))
            self._progress.start()
        return self._progress.add_task("", total=total, completed=completed, name=name)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = self._held_out = None


def describe(metrics: Mapping[str, float]) -> str:
    """Describe a step in one line: reward or success (else the loss), groups without variance, seconds by phase."""
    parts = []
    if "wm/reward" in metrics:
        parts.append(f"reward {metrics['wm/reward']:.2f}")
        if "wm/true_reward" in metrics:  # a control run trains on another reward
            parts.append(f"true reward {metrics['wm/true_reward']:.2f}")
        parts.append(f"similarity {metrics.get('wm/similarity', float('nan')):.2f}")
        parts.append(f"format {metrics['wm/format']:.2f}")
        parts.append(f"groups without variance {100 * metrics['wm/zero_variance_groups']:.0f} %")
    elif "policy/success" in metrics:
        parts.append(f"success {metrics['policy/success']:.2f}")
        parts.append(f"return {metrics['policy/return']:.2f}")
        parts.append(f"turns {metrics['policy/turns']:.1f}")
        parts.append(f"invalid actions {100 * metrics.get('policy/invalid_actions', 0):.0f} %")
        parts.append(f"groups without variance {100 * metrics['policy/zero_variance_groups']:.0f} %")
    else:
        parts.append(f"loss {metrics.get('train/loss', float('nan')):.3f}")
    seconds = [f"{phase} {metrics[f'time/{phase}']:.1f}" for phase in _PHASES if f"time/{phase}" in metrics]
    return "  ".join(parts) + "  seconds: " + ", ".join(seconds)
