"""What a command gets that takes a config."""

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
    """What a config makes; nothing is loaded yet.

    Args:
        model: Module.
        data: DataModule.
        run: Name and place of the run.
        config: The whole config, as YAML.
        loggers: Loggers.
        make_trainer: Makes a trainer with what an evaluation needs, and without the config's loggers and callbacks.
    """

    model: PolicyModule
    data: RolloutDataModule
    run: Run
    config: str
    loggers: list[Logger]
    make_trainer: Callable[[], L.Trainer]
