"""Short training runs with callbacks, and a batch for their computations."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from rwml_callbacks import (
    RewardLogger,
    TraceRecorder,
    WeightSync,
)

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.schema import (
    Completion,
    Group,
    Prediction,
    RolloutBatch,
    Sampling,
    Score,
)
from support.rewards import LetterReward
from support.training import make
from support.worlds import ACTION_PROMPT, make_transition, make_world


def fit(
    folder: Path,
    model: Path,
    callbacks: list[L.Callback],
    generator: Any = None,
    logger: Any = False,
    ckpt_path: Path | None = None,
    stage: type[WorldModelGRPO] = WorldModelGRPO,
    log_every_n_steps: int = 1,
    **arguments: Any,
) -> L.Trainer:
    """Train four steps, with an evaluation after the second and the fourth."""
    write_transitions(folder / "t.parquet", make_world())
    data = RolloutDataModule(
        generator or HFGenerator(),
        predictions=Predictions(
            str(folder / "t.parquet"), LetterReward(0.05), prompt=ACTION_PROMPT, sampling=Sampling(20),
            prompts_per_step=8, group_size=4, num_passes=1,
        ),
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), num_sanity_val_steps=0,
        callbacks=callbacks, max_epochs=1, log_every_n_steps=log_every_n_steps,
        check_val_every_n_epoch=None, val_check_interval=2,
    )  # fmt: skip
    module = make(stage, model=str(model), **{"learning_rate": 5e-3, **arguments})
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def make_batch(*parts: dict[str, float]) -> RolloutBatch:
    """Make two groups of two predictions with rewards 1, 0 and 0, 0. The last answer is malformed and cut off."""
    scores = [Score(1.0, 0.9, True), Score(0.0, 0.5, True), Score(0.0, 0.1, True), Score(0.0, None, False)]
    scores = [replace(score, parts=given) for score, given in zip_longest(scores, parts, fillvalue={})]
    lengths, reasons = (2, 4, 6, 8), ("stop", "stop", "stop", "length")
    predictions = [
        Prediction(Completion((1,) * n, (0.0,) * n, reason, 0), "", "", None, score, 0.0, m % 2)  # type: ignore[arg-type]
        for m, (n, reason, score) in enumerate(zip(lengths, reasons, scores, strict=True))
    ]
    groups = tuple(
        Group(make_transition(i), (1,), "", tuple(predictions[2 * i : 2 * i + 2])) for i in range(2)
    )
    return RolloutBatch(0, 0, groups, dropped=("a", "b", "c"), seconds={"generate": 4.0})


def write(path: Path, *rows: tuple[str, int, str, float]) -> None:
    """Write rows with one :class:`RewardLogger`, as one process does."""
    logger = RewardLogger(path)
    for stage, step, name, value in rows:
        logger.write(stage, step, {name: value})


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


def run(folder: Path, model: Path, *callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    """Train four steps with a small learning rate, with the callbacks in the order of the command line."""
    torch.manual_seed(0)  # adapters have random initial weights
    recorded = [RewardLogger(folder / "metrics.csv"), TraceRecorder(folder / "trace.db")]
    return fit(folder, model, [*callbacks, WeightSync(), *recorded], **{"learning_rate": 1e-4, **arguments})


class Clean(L.Callback):
    """Record whether all modules of the policy are in train mode after each step."""

    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.training.append(all(part.training for part in pl_module.policy.modules()))
