"""Held-out evaluation of several models, with one model in memory at a time."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path

import lightning as L
from safetensors import SafetensorError

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.evaluation import ModelResult
from rwml_lightning.generation import Generator
from rwml_lightning.models import end_token_ids, resolve_model
from rwml_lightning.modules.loading import Dtype, checkpoint_policy
from rwml_lightning.modules.wm_sft import WorldModelSFT


class ModelEvaluator:
    """Evaluates one model after another on the same data.

    The generator is kept and gets new weights if two models differ only in their weights. Otherwise it is restarted.

    Args:
        trainer: Trainer that runs the validation. Its callbacks send the weights to the generator and verify them there.
        data: Held-out transitions, generator and reward. It is not modified.
        dtype: Dtype of models that are not checkpoints. A checkpoint has its own dtype.
    """

    def __init__(self, trainer: L.Trainer, data: RolloutDataModule, dtype: Dtype) -> None:
        self.trainer = trainer
        self.data = data
        self.dtype: Dtype = dtype
        self.generator: Generator | None = None
        self._architecture = ""

    def evaluate(self, name: str) -> ModelResult:
        """Evaluate one model on the held-out transitions.

        Raises:
            ValueError: The model cannot be loaded, or prompts do not fit its context.
        """
        module = load_module(name, self.dtype)
        given = self.data  # the tokenizer and context length in a DataModule belong to one model
        data = RolloutDataModule(
            self._generator_for(module.model), given.environment, given.predictions, None, given.chat_template_kwargs, given.seed
        )  # fmt: skip
        try:
            self.trainer.validate(module, data, verbose=False)
        finally:
            # Free memory: the trainer keeps the module until the next model, and an in-process generator keeps its policy.
            del module.policy
            data.generator.detach()
        return ModelResult(name, module.held_out.results, module.held_out.floors, module.held_out.measured)

    def close(self) -> None:
        """Shut down the generator."""
        if self.generator is not None:
            self.generator.close()

    def _generator_for(self, model: str) -> Generator:
        architecture = describe_architecture(model)
        if self.generator is None or architecture != self._architecture:
            self.close()
            # The generator is not started yet, so the copy shares nothing with it.
            self.generator = copy(self.data.generator)
            self.generator.model = model  # type: ignore[attr-defined]
            self._architecture = architecture
        return self.generator


def load_module(name: str, dtype: Dtype) -> WorldModelSFT:
    """Load a model from any stage into a world-model module.

    Args:
        name: Checkpoint (``.ckpt``), folder, hub id or ``package:`` name.
        dtype: Dtype of models that are not checkpoints. A checkpoint has its own dtype.

    Raises:
        ValueError: The model cannot be loaded; the message gives the reason in one line.
    """
    is_checkpoint = name.endswith(".ckpt")
    try:
        if is_checkpoint:
            module = WorldModelSFT(**checkpoint_policy(Path(name)), init_from=name)
        else:
            module = WorldModelSFT(model=name, dtype=dtype)
        module.configure_model()
        assert module.tokenizer is not None
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:  # errors of loaders for broken files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"the model cannot be loaded ({reason})") from error
    return module


def describe_architecture(model: str) -> str:
    """Describe everything of a model but its weights. A generator can take the weights of a model with an equal text."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=False).to_dict()
    for origin in ("_name_or_path", "transformers_version"):
        config.pop(origin, None)
    return json.dumps([config, end_token_ids(model)], sort_keys=True, default=str)
