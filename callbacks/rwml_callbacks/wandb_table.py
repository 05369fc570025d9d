"""A W&B table that grows over a whole run, for callbacks that show samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, Literal, TypeVar

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from rwml_callbacks.passing import passes_multiple
from rwml_lightning.modules.base import PolicyModule

Member = TypeVar("Member")
_INCREMENTS = 90  # W&B shows the last 100 of a table; evaluations and the end of training add a few


class GrowingTable(L.Callback, ABC):
    """Log one W&B table in increments; without a W&B logger, do nothing.

    Each upload holds the new rows only. A long run sends the rows of several steps together, so that W&B can show all
    of them. Checkpoints hold the rows so far, so a resumed run loses none: an online run already has them on W&B, an
    offline run sends them again from its new folder.

    Args:
        **limits: Settings of a subclass that must be at least 1.

    Raises:
        ValueError: A limit is below 1.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    batch: ClassVar[type]
    """Type of the training batches whose groups are logged."""
    evaluation: ClassVar[Literal["held_out", "games"]]
    """Evaluation of the module whose groups are logged."""

    def __init__(self, **limits: int) -> None:
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name} is {value}; it must be at least 1")
        self._rows: list[list[Any]] = []
        self._num_logged = 0
        self._table: Any = None

    @abstractmethod
    def add(self, trainer: L.Trainer, module: PolicyModule, split: str, groups: Sequence[Any]) -> None:
        """Add the groups of a training step or an evaluation to the table.

        Args:
            trainer: Trainer with the loggers.
            module: Module of the stage.
            split: ``train`` or ``validation``.
            groups: Groups of predictions or episodes.
        """

    @override
    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        if isinstance(outputs.get("batch"), self.batch):
            self.add(trainer, pl_module, "train", outputs["batch"].groups)
            self.send_now_and_then(trainer, pl_module)

    @override
    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = getattr(pl_module, self.evaluation).groups
        if groups and not trainer.sanity_checking:
            assert isinstance(pl_module, PolicyModule)
            self.add(trainer, pl_module, "validation", groups)
            if trainer.state.fn != TrainerFn.FITTING:
                self.send(trainer)

    def add_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows to the next increment."""
        self._rows += [list(row) for row in rows]

    def send_now_and_then(self, trainer: L.Trainer, module: PolicyModule) -> None:
        """Send the new rows after a training step, or after several steps in a long run."""
        every = module.num_planned_steps // _INCREMENTS + 1
        if passes_multiple(trainer.global_step, module.steps_per_batch, every):
            self.send(trainer)

    @override
    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.send(trainer)

    @override
    @rank_zero_only
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.send(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "num_logged": self._num_logged}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows, self._num_logged = list(state_dict["rows"]), state_dict["num_logged"]

    def send(self, trainer: L.Trainer) -> None:
        """Send the rows that W&B does not have yet."""
        import wandb

        logger = wandb_logger(trainer)
        if logger is None or not self._rows:
            return
        if self._table is None:
            self._table = wandb.Table(columns=list(self.columns), log_mode="INCREMENTAL")
            if not logger.experiment.resumed:
                self._num_logged = 0
        if self._num_logged == len(self._rows):
            return
        for row in self._rows[self._num_logged :]:
            self._table.add_data(*row)
        self._num_logged = len(self._rows)
        logger.log_metrics({self.name: self._table}, step=trainer.global_step)


def by_member(groups: Iterable[Iterable[Member]]) -> Iterator[Member]:
    """Yield the first member of every group, then the second of every group, and so on."""
    for members in zip_longest(*groups):
        yield from (member for member in members if member is not None)


def clip(text: str, max_chars: int) -> str:
    """Cut a text to ``max_chars`` characters, the last of which is then an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def wandb_logger(trainer: L.Trainer) -> WandbLogger | None:
    """Return the trainer's W&B logger, or ``None`` if it has none."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
