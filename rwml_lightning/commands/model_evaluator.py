"""Held-out results of models that come one after another, one in memory at a time."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path

import lightning as L
from safetensors import SafetensorError

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.evaluation import ModelResult
from rwml_lightning.generation import Generator, HFGenerator
from rwml_lightning.models import end_token_ids, resolve_model
from rwml_lightning.modules.loading import Dtype, checkpoint_policy
from rwml_lightning.modules.wm_sft import WorldModelSFT


class ModelEvaluator:
    """Evaluates one model after another on the same data.

    The generator goes on with new weights while the models differ in nothing else, and starts anew otherwise.

    Args:
        trainer: Validates; its callbacks bring the weights to the generator and prove that they arrived.
        data: Held-out transitions, generator and reward; left as it is.
        dtype: Dtype of models that are no checkpoints, which have their own.
    """

    def __init__(self, trainer: L.Trainer, data: RolloutDataModule, dtype: Dtype) -> None:
        self.trainer = trainer
        self.data = data
        self.dtype: Dtype = dtype
        self.generator: Generator | None = None
        self._architecture = ""

    def evaluate(self, name: str) -> ModelResult:
        """Held-out results of one model.

        Raises:
            ValueError: The model does not load, or prompts do not fit its context.
        """
        module = load_module(name, self.dtype)
        given = self.data  # what a DataModule learns of tokenizer and context is one model's
        data = RolloutDataModule(
            self._generator_for(module.model), given.environment, given.predictions, None, given.chat_template_kwargs, given.seed
        )  # fmt: skip
        try:
            self.trainer.validate(module, data, verbose=False)
        finally:
            # The trainer keeps the module until the next one comes, and a generator in this process its policy.
            del module.policy
            if isinstance(data.generator, HFGenerator):
                data.generator.close()
        return ModelResult(name, module.held_out.results, module.held_out.floors, module.held_out.measured)

    def close(self) -> None:
        """End the generator."""
        if self.generator is not None:
            self.generator.close()

    def _generator_for(self, model: str) -> Generator:
        architecture = describe_architecture(model)
        if self.generator is None or architecture != self._architecture:
            self.close()
            self.generator = copy(self.data.generator)  # not started yet, so the copy shares nothing
            self.generator.model = model  # type: ignore[attr-defined]
            self._architecture = architecture
        return self.generator


def load_module(name: str, dtype: Dtype) -> WorldModelSFT:
    """A module with the model's weights, whatever stage they come from.

    Args:
        name: Checkpoint (``.ckpt``), folder, hub id or ``package:`` name.
        dtype: Dtype of all but checkpoints, which have their own.

    Raises:
        ValueError: It does not load; says why in one line.
    """
    is_checkpoint = name.endswith(".ckpt")
    try:
        if is_checkpoint:
            module = WorldModelSFT(**checkpoint_policy(Path(name)), init_from=name)
        else:
            module = WorldModelSFT(model=name, dtype=dtype)
        module.configure_model()
        assert module.tokenizer is not None
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:  # what loaders say of broken files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"it does not load ({reason})") from error
    return module


def describe_architecture(model: str) -> str:
    """What must be equal for a generator to go on with another model's weights: all but the weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=False).to_dict()
    for origin in ("_name_or_path", "transformers_version"):
        config.pop(origin, None)
    return json.dumps([config, end_token_ids(model)], sort_keys=True, default=str)
