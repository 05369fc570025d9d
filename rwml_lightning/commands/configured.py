"""The objects that a command with a config receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from lightning.pytorch.loggers import Logger

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.run import Run


@dataclass(frozen=True)
class Configured:
    """Objects that are built from a config. No model is loaded yet.

    Args:
        model: Module.
        data: DataModule.
        run: Name and folder of the run.
        config: The whole config as YAML.
        loggers: Loggers.
        make_trainer: Function that makes a trainer for evaluations, without the config's loggers and callbacks.
    """

    model: PolicyModule
    data: RolloutDataModule
    run: Run
    config: str
    loggers: list[Logger]
    make_trainer: Callable[[], L.Trainer]
