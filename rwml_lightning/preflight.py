"""Checks of a config's devices, models, files and environment, before a command does or writes anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from rwml_lightning import parallel
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.generation import VLLMServerGenerator
from rwml_lightning.memory import Hardware, Plan, card_memory, local_embedders, machine_memory, plan
from rwml_lightning.models import load_skeleton, resolve_model
from rwml_lightning.modules.adapters import LoRA, wrap
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.grpo import GRPOModule
from rwml_lightning.modules.loading import check_same_lora, checkpoint_policy

log = logging.getLogger(__name__)


def check_run(command: str, config: Namespace, model: PolicyModule, data: RolloutDataModule) -> Plan | None:
    """Check that everything that a command needs from its config exists.

    Args:
        command: Name of the command.
        config: Config of the command, before objects are built from it.
        model: Module that was built from the config. No weights are loaded yet.
        data: DataModule that was built from the config.

    Returns:
        Memory of the run; ``None`` for a command that does not train.

    Raises:
        ValueError: Something does not exist or is unsuitable; the message names the key.
    """
    if command == "collect":
        predictions = data.need_predictions()
        if predictions.path.exists():
            return None
        check_transitions(predictions, data)
        assert predictions.collection is not None
        if predictions.collection.behaviour != "model":
            return None
    trainer: L.Trainer | None = None
    if command == "fit":
        check_strategy(config.trainer.strategy)
        trainer = check_devices(model, config.trainer)
        check_ranks(trainer.world_size, model, data)
        check_staleness(model, data)
    if command in ("fit", "validate", "test", "collect"):
        _check_model("model.init_args.model", model.model)
        if (generator_model := getattr(data.generator, "model", None)) is not None:
            _check_model("data.generator.init_args.model", generator_model)
        if isinstance(data.generator, VLLMServerGenerator):
            _check_servers(data.generator)
    if command == "collect":
        return None
    parts: dict[str, Any] = {}
    if (given := config.data.predictions) is not None:
        parts = {f"data.predictions.{key}": given[key] for key in ("reward", "evaluator")}
    if command == "fit":
        parts["trainer.callbacks"] = config.trainer.callbacks
    for key, part in parts.items():
        for path, embedder in embedders(part, key):
            _check_model(path, embedder)
    if command in ("fit", "validate", "test"):
        check_starting_weights(model)
        check_checkpoint(config.ckpt_path, model)
    if command in ("fit", "validate", "test", "evaluate"):
        check_data(model, data)
    if trainer is None:
        return None
    if config.trainer.get("strategy") == "fsdp":
        check_demonstrations(model, data)
    return check_memory(
        trainer, model, data, [parts.get("data.predictions.reward"), parts.get("data.predictions.evaluator")]
    )


def check_stage(command: str, model: PolicyModule, data: RolloutDataModule) -> None:
    """Check that the module supports the command."""
    stage = type(model).__name__
    if command == "test" and model.reads != "episodes":
        raise ValueError(f"test plays episodes, but {stage} does not; use validate or evaluate")
    control = "none" if data.predictions is None else data.predictions.control
    if command == "fit" and control != "none" and not model.on_policy:
        raise ValueError(
            f"control is {control!r}, which replaces rewards, but {stage} learns from labels; remove control"
        )


def check_strategy(given: str | Namespace) -> None:
    """Check that the strategy leaves the sum of gradients over the ranks to the module, and shards what the module shards."""
    if isinstance(given, Namespace):
        name, kind = given.class_path, locate(given.class_path)
        known = kind in (DDPStrategy, parallel.Replicated, parallel.Sharded)
    else:
        name, known = given, given in ("auto", "ddp", "fsdp")
    if not known:
        raise ValueError(
            f"trainer.strategy is {name!r}, but takes auto, ddp or fsdp: others would not train on the whole step"
        )


def check_ranks(num_ranks: int, model: PolicyModule, data: RolloutDataModule) -> None:
    """Check that every rank can have a generator, and warn if a step has fewer items than ranks."""
    if num_ranks > 1 and getattr(data.generator, "tensor_parallel_size", 1) > 1:
        raise ValueError(
            f"data.generator.init_args.tensor_parallel_size is {data.generator.tensor_parallel_size}, "  # type: ignore[attr-defined]
            f"but each of the {num_ranks} ranks starts an engine on its own card: set 1, or use VLLMServerGenerator"
        )
    items = {"predictions": "prompts_per_step", "episodes": "games_per_step"}[model.reads]
    size = getattr(getattr(data, model.reads), items, num_ranks)
    if model.on_policy and size < num_ranks:
        log.warning(
            "data.%s.%s is %d, so that some of %d ranks roll out nothing", model.reads, items, size, num_ranks
        )


def check_staleness(model: PolicyModule, data: RolloutDataModule) -> None:
    """Check that a generator that is to work during the updates has devices of its own."""
    staleness = model.grpo.max_staleness if isinstance(model, GRPOModule) else 0
    if staleness and not data.generator.elsewhere:
        raise ValueError(
            f"model.grpo.max_staleness is {staleness}, so that the next batch is made during an update, but "
            f"{type(data.generator).__name__} shares the devices of the trainer: use VLLMServerGenerator, or set 0"
        )


def check_memory(
    trainer: L.Trainer, model: PolicyModule, data: RolloutDataModule, rewards: Sequence[Any]
) -> Plan:
    """Plan the memory of the main stage, which needs the most, and check that it fits.

    All ranks take the memory that rank 0 finds, so that all refuse the same run.

    Args:
        trainer: Trainer with the devices of the run.
        model: Module of the main stage.
        data: DataModule of the run.
        rewards: Parts of the config that may hold an embedding model.

    Returns:
        The plan.

    Raises:
        ValueError: The plan does not fit.
    """
    on_card = isinstance(trainer.accelerator, CUDAAccelerator)
    kind: Literal["cuda", "cpu"] = "cuda" if on_card else "cpu"
    found = parallel.agree("memory", lambda: str(card_memory() if on_card else machine_memory()))
    hardware = Hardware(
        kind=kind,
        available=float(found) / (1 if on_card else trainer.num_devices),
        world_size=trainer.world_size,
        sharded=isinstance(trainer.strategy, parallel.Sharded),
        mixed_precision=trainer.precision == "bf16-mixed",
    )
    planned = plan(model, data.generator, list(local_embedders(list(rewards))), hardware)
    planned.check()
    return planned


def check_devices(model: PolicyModule, trainer: Namespace) -> L.Trainer:
    """Check that the trainer's devices exist and that the model can train in their precision.

    A temporary trainer is made from these settings alone. A strategy that the config gives as a class is left out, since
    the object would be bound to the temporary trainer.

    Returns:
        The temporary trainer.
    """
    keys = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    given = {key: trainer[key] for key in keys if not isinstance(trainer[key], Namespace)}
    given["strategy"] = parallel.find_strategy(given.get("strategy", "auto"))
    try:
        found = L.Trainer(
            **given, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )  # fmt: skip
    except MisconfigurationException as error:
        raise ValueError(
            f"trainer.accelerator is {trainer.accelerator!r} and trainer.devices is {trainer.devices!r}: {error}"
        ) from error
    model.check_precision(found.precision)
    return found


def embedders(part: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each embedding model in a part of the config, at any depth."""
    if isinstance(part, Namespace):
        part = vars(part)
    if isinstance(part, list):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    if isinstance(part.get("embedder"), str) and not part.get("server"):
        yield f"{path}.embedder", part["embedder"]
    for key, value in part.items():
        yield from embedders(value, f"{path}.{key}")


def check_checkpoint(ckpt_path: str | None, model: PolicyModule) -> None:
    """Check that a checkpoint is a local one of this library with the adapters of ``model``.

    Lightning would download a checkpoint from a URL and run the code in it.
    """
    if ckpt_path is None:
        return
    path = Path(ckpt_path)
    if not path.exists() or ckpt_path in ("best", "last", "hpc"):  # Lightning's keywords for other files
        raise ValueError(
            f"--ckpt_path names {ckpt_path}, which is not a local file; give the path of a checkpoint, and download a remote one first"
        )
    if path.is_file():
        check_same_lora(checkpoint_policy(path)["lora"], model.lora, f"--ckpt_path names {path}, which")


def check_starting_weights(model: PolicyModule) -> None:
    """Check that ``model.init_from`` is a model folder, or a checkpoint that fits the model."""
    if model.init_from is None:
        return
    path = Path(model.init_from)
    if not path.exists():
        raise ValueError(f"model.init_from names {path}, which does not exist")
    if path.is_dir():
        _check_model("model.init_args.init_from", str(path))
        return
    check_same_lora(checkpoint_policy(path)["lora"], model.lora, f"model.init_from names {path}, which")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    saved = {name.removeprefix("policy."): weight.shape for name, weight in state.items()}
    expected = weight_shapes(model.model, model.lora)
    differing = sorted(n for n in expected.keys() | saved.keys() if expected.get(n) != saved.get(n))
    if differing:
        raise ValueError(
            f"model.init_from names {path}, which holds the weights of another model or LoRA setting: {differing[0]} does not "
            "match"
        )


def weight_shapes(model: str, lora: LoRA | None) -> dict[str, torch.Size]:
    """Return the shapes of a policy's weights by name, without reading any weight."""
    policy: nn.Module = load_skeleton(model)
    if lora is not None:
        with torch.device("meta"):
            policy = wrap(policy, lora)
    return {name: weight.shape for name, weight in policy.state_dict().items()}


def check_data(model: PolicyModule, data: RolloutDataModule) -> None:
    """Check that the data of the stage exists or can be made."""
    if getattr(data, model.reads) is None:
        raise ValueError(f"data.{model.reads} is not set, but {type(model).__name__} trains on it")
    if data.episodes is not None:
        check_environment(data)
        if model.reads == "episodes" and model.learns == "labels":
            data.episodes.need_demonstrations()
        if getattr(model, "world_model_weight", 0) and data.episodes.next_state_labels is None:
            raise ValueError(
                "model.world_model_weight is set, but data.episodes.next_state_labels is not; it defines the labels of that loss"
            )
    if data.predictions is not None:
        data.predictions.need_evaluator()
        if not data.predictions.path.exists():
            check_transitions(data.predictions, data)


def check_demonstrations(model: PolicyModule, data: RolloutDataModule) -> None:
    """Refuse to let a sharded policy write its demonstrations, which rank 0 collects alone."""
    wanted = None if data.episodes is None else data.episodes.demonstrations
    if (
        model.learns == "labels"
        and wanted is not None
        and wanted.source != "expert"
        and not Path(wanted.path).exists()
    ):
        raise ValueError(
            f"data.episodes.demonstrations.source is {wanted.source!r} and trainer.strategy is fsdp, but rank 0 alone writes the "
            f"demonstrations: make {wanted.path} first, in a run with trainer.strategy ddp or in one process"
        )


def check_transitions(predictions: Predictions, data: RolloutDataModule) -> None:
    """Check that missing transitions can be collected."""
    predictions.check_collectable(data.environment)
    check_environment(data)


def check_environment(data: RolloutDataModule) -> None:
    """Check that the environment can be made, unless it plays generated games, which do not exist yet."""
    if data.environment is None:
        raise ValueError("data.environment is not set, so the policy has nothing to act in")
    if data.environment.games is not None:
        return
    try:
        data.environment.make().close()
    except ValueError as error:
        raise ValueError(f"data.environment: {error}") from error


def _check_servers(generator: VLLMServerGenerator) -> None:
    try:
        generator.check()
    except ValueError as error:
        raise ValueError(f"data.generator: {error}") from error


def _check_model(key: str, name: str) -> None:
    try:
        resolve_model(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
