"""What comes before the main stage: the warm-up, and the trainers and copies of the model that such stages take."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.exporting import write_export
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.policy_sft import PolicySFT
from rwml_lightning.modules.wm_sft import WorldModelSFT
from rwml_lightning.run import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmUp:
    """A short supervised stage before GRPO, for models too small to write a well-formed answer untaught: next-state SFT, or
    imitation of ``data.episodes.demonstrations`` before a policy stage.

    Args:
        num_transitions: Training transitions it uses, or turns of demonstrations.
        batch_size: Transitions or turns in an optimizer step.
        num_passes: How often each is used.
        learning_rate: Learning rate of AdamW.
    """

    num_transitions: int = 64
    batch_size: int = 8
    num_passes: int = 1
    learning_rate: float = 1e-4


def warm_up(
    wanted: WarmUp,
    model: PolicyModule,
    data: RolloutDataModule,
    trainer: L.Trainer,
    folder: RunFolder,
    callbacks: list[L.Callback],
) -> Path:
    """Run the warm-up unless its result is there.

    Args:
        wanted: How long and how fast.
        model: Module of the main stage, whose model it is.
        data: Shared by both stages.
        trainer: Trainer of the main stage; the warm-up runs on the same devices.
        folder: Where the result goes.
        callbacks: For the warm-up's own trainer.

    Returns:
        A Hugging Face folder to start the main stage from.
    """
    if folder.warm_up.is_dir():
        return folder.warm_up
    if model.lora is not None:
        load_policy(
            model.model, model.dtype_name, model.lora
        )  # adapters that are refused are refused at once
    log.warning(
        "warm-up: %s on %d samples, so that the model writes well-formed answers before GRPO begins",
        "imitation" if model.reads == "episodes" else "next-state SFT",
        wanted.num_transitions,
    )
    lora = (
        None if model.dtype_name == "float32" else model.lora
    )  # low-precision weights are not trained themselves
    module = supervised_copy(model, wanted.learning_rate, model.init_from, lora)
    with data.limited_to(wanted.num_transitions, wanted.batch_size, wanted.num_passes):
        stage_trainer = preliminary_trainer(trainer, callbacks)
        stage_trainer.validate(module, data, verbose=False)
        stage_trainer.fit(module, data)
        if trainer.is_global_zero:
            write_export(module, folder.warm_up)
    return folder.warm_up


def supervised_copy(
    model: PolicyModule, learning_rate: float, init_from: str | None = None, lora: LoRA | None = None
) -> PolicySFT | WorldModelSFT:
    """A module for supervised training of the same model for what it does, on its own copy of the weights."""
    kind = PolicySFT if model.reads == "episodes" else WorldModelSFT
    return kind(
        model=model.model,
        init_from=init_from,
        lora=lora,
        dtype=model.dtype_name,
        gradient_checkpointing=model.gradient_checkpointing,
        optimizer=Optimizer(learning_rate),
        max_tokens_per_micro_batch=model.max_tokens_per_micro_batch,
        head_chunk_size=model.head_chunk_size,
    )


def preliminary_trainer(trainer: L.Trainer, callbacks: list[L.Callback]) -> L.Trainer:
    """A trainer for what comes before the main stage, on the devices and nodes of the main stage's ``trainer``, by a strategy of
    the same class."""
    strategy = trainer.strategy
    devices = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else [strategy.root_device]
    indices = [device.index for device in devices or ()]
    return L.Trainer(
        accelerator=trainer.accelerator,
        devices=len(indices) if None in indices else indices,  # CPUs have no index
        num_nodes=trainer.num_nodes,
        strategy=type(strategy)() if isinstance(strategy, ParallelStrategy) else "auto",
        precision=trainer.precision,
        max_epochs=1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=1_000_000_000,
        logger=False,  # it would draw its few steps over the main stage's curves; metrics.csv tells the stages apart
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
