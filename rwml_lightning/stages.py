"""The warm-up before the main stage, and the trainers and model copies of such preliminary stages."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.interrupts import deferred, keep_handlers
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.exporting import write_export
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.modules.observers import stop_requested
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.policy_sft import PolicySFT
from rwml_lightning.modules.wm_sft import WorldModelSFT
from rwml_lightning.run import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmUp:
    """A short supervised stage before GRPO, for models that are too small to write a well-formed answer without training.

    It is next-state SFT, or imitation of ``data.episodes.demonstrations`` before a policy stage.

    Args:
        num_transitions: Number of training transitions, or of turns of demonstrations.
        batch_size: Transitions or turns per optimizer step.
        num_passes: Number of passes over them.
        learning_rate: Learning rate of AdamW.
    """

    num_transitions: int = 64
    batch_size: int = 8
    num_passes: int = 1
    learning_rate: float = 1e-4


def warm_up(
    settings: WarmUp,
    model: PolicyModule,
    data: RolloutDataModule,
    trainer: L.Trainer,
    folder: RunFolder,
    callbacks: list[L.Callback],
) -> Path | None:
    """Run the warm-up unless its result exists.

    Args:
        settings: Length and learning rate of the warm-up.
        model: Module of the main stage. The warm-up trains a copy of its model.
        data: DataModule of both stages.
        trainer: Trainer of the main stage. The warm-up runs on the same devices.
        folder: Run folder for the result.
        callbacks: Callbacks of the warm-up's trainer.

    Returns:
        Hugging Face folder from which the main stage starts; ``None`` if a user has stopped the warm-up.
    """
    if folder.warm_up.is_dir():
        return folder.warm_up
    if model.lora is not None:
        # An unsupported adapter fails here, before any training.
        load_policy(model.model, model.dtype_name, model.lora)
    log.warning(
        "warm-up: %s on %d samples, so that the model writes well-formed answers before GRPO begins",
        "imitation" if model.reads == "episodes" else "next-state SFT",
        settings.num_transitions,
    )
    # Weights that cannot be trained in their precision get the adapters of the main stage.
    trains_alone = model.lora is None or model.dtype_name == "float32" or model.optimizer.stochastic_rounding
    lora = None if trains_alone else model.lora
    module = supervised_copy(model, settings.learning_rate, model.init_from, lora)
    with data.limited_to(settings.num_transitions, settings.batch_size, settings.num_passes):
        stage_trainer = preliminary_trainer(trainer, callbacks)
        stage_trainer.validate(module, data, verbose=False)
        with deferred():
            stage_trainer.fit(module, data)
        if stop_requested(stage_trainer):
            return None
        write_export(module, folder.warm_up, data.probe_ids())
    return folder.warm_up


def supervised_copy(
    model: PolicyModule, learning_rate: float, init_from: str | None = None, lora: LoRA | None = None
) -> PolicySFT | WorldModelSFT:
    """Make a module for supervised training of the same model and task, with a separate copy of the weights."""
    kind = PolicySFT if model.reads == "episodes" else WorldModelSFT
    return kind(
        model=model.model,
        init_from=init_from,
        lora=lora,
        dtype=model.dtype_name,
        gradient_checkpointing=model.gradient_checkpointing,
        optimizer=Optimizer(
            learning_rate,
            moments=model.optimizer.moments,
            stochastic_rounding=model.optimizer.stochastic_rounding,
        ),
        max_tokens_per_micro_batch=model.max_tokens_per_micro_batch,
        head_chunk_size=model.head_chunk_size,
    )


def preliminary_trainer(trainer: L.Trainer, callbacks: list[L.Callback]) -> L.Trainer:
    """Make a trainer for a stage before the main stage, with the devices, nodes and class of strategy of ``trainer``."""
    strategy = trainer.strategy
    devices = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else [strategy.root_device]
    indices = [device.index for device in devices or ()]
    made = L.Trainer(
        accelerator=trainer.accelerator,
        devices=len(indices) if None in indices else indices,  # CPUs have no index
        num_nodes=trainer.num_nodes,
        strategy=type(strategy)() if isinstance(strategy, ParallelStrategy) else "auto",
        precision=trainer.precision,
        max_epochs=1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=1_000_000_000,
        logger=False,  # a logger would mix these few steps with the main stage's curves; metrics.csv names the stage of each step
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    keep_handlers(made)
    return made
