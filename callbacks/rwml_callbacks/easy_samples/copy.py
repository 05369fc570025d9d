"""The easy-sample filter's copy of the model: its data, its training and its predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from rwml_callbacks.easy_samples.parts import Answers, ScoredParts
from rwml_callbacks.progress import RolloutProgressBar
from rwml_callbacks.reward_logger import RewardLogger
from rwml_callbacks.weight_sync import WeightSync
from rwml_lightning import parallel
from rwml_lightning.answers import extract_answer
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.labels import label_transitions
from rwml_lightning.data.loader import Draw, StepLoader
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.rollouts import member_seeds
from rwml_lightning.generation import Generator
from rwml_lightning.interrupts import deferred
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.exporting import write_export
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.schema import LabelledBatch, Transition
from rwml_lightning.stages import preliminary_trainer, supervised_copy


@dataclass(eq=False, repr=False)
class CopyData(L.LightningDataModule):
    """Load labels for the copy's training, and answers for the transitions that it judges.

    Args:
        data: Data module of the main stage. Its generator, prompt and sampling settings are used.
        taught: Transitions to train on.
        judged: Transitions to predict.
        batch_size: Number of transitions per optimizer step.
        num_passes: Number of passes over ``taught``.
        num_samples: Number of predictions per transition.
        prompts_per_batch: Number of transitions per call of the generator.
        seed: Seed of the order of training and of the samples.
    """

    data: RolloutDataModule
    taught: Sequence[Transition]
    judged: Sequence[Transition]
    batch_size: int
    num_passes: int
    num_samples: int
    prompts_per_batch: int
    seed: int

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def generator(self) -> Generator:
        """Generator that :class:`WeightSync` gives the copy's weights."""
        return self.data.generator

    def probe_ids(self) -> list[int]:
        """Return a fixed token sequence for the comparison of generator and copy."""
        return self.data.probe_ids()

    @override
    def train_dataloader(self) -> StepLoader[Transition, LabelledBatch]:
        return StepLoader(Draw(self.taught, self.batch_size, self._label, self.num_passes), self.seed)

    @override
    def predict_dataloader(self) -> StepLoader[Transition, Answers]:
        return StepLoader(Draw(self.judged, self.prompts_per_batch, self._answer, gathered=False))

    @override
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def _label(self, step: int, transitions: Sequence[Transition]) -> LabelledBatch:
        return LabelledBatch(step, label_transitions(transitions, self._settings.prompt, self._chat))

    def _answer(self, step: int, transitions: Sequence[Transition]) -> Answers:
        chat = self._chat
        prompts = [self._settings.prompt.encode(chat, transition) for transition in transitions]
        seeds = member_seeds(self.seed, "easy_sample_filter", 0, transitions, self.num_samples)
        start = time.perf_counter()
        groups = self.generator.generate(prompts, self._settings.sampling, seeds)
        seconds = time.perf_counter() - start
        return Answers(
            transitions=transitions,
            predictions=[
                [extract_answer(chat.decode(one), chat.in_thinking(prompt)).next_state for one in group]
                for prompt, group in zip(prompts, groups, strict=True)
            ],
            num_tokens=sum(len(completion.token_ids) for group in groups for completion in group),
            generate_seconds=seconds,
        )

    @cached_property
    def _chat(self) -> ChatFormat:
        assert self.trainer is not None
        return self.data.ask(self.trainer.lightning_module).chat  # type: ignore[arg-type]

    @property
    def _settings(self) -> Predictions:
        return self.data.need_predictions()


def predict_with_copy(
    trainer: L.Trainer, model: PolicyModule, data: CopyData, learning_rate: float, parts: ScoredParts
) -> None:
    """Train a copy of the model, unless its weights exist already, and predict the judged transitions of ``data``.

    Args:
        trainer: Trainer of the main stage; the copy runs on the same devices.
        model: Module of the main stage. The copy starts from its weights, and the module itself does not change.
        data: Data of the copy.
        learning_rate: Learning rate of the copy's training.
        parts: Callback that scores and stores the results. The copy's weights are stored in the same folder.
    """
    weights = parts.folder / "copy"
    if not weights.is_dir():
        torch.manual_seed(data.seed)
        copy = supervised_copy(model, learning_rate, model.init_from, model.lora)
        learning = preliminary_trainer(trainer, [RewardLogger(), RolloutProgressBar()])
        with deferred():
            learning.fit(copy, data)
        parts.folder.mkdir(parents=True, exist_ok=True)
        write_export(copy, weights, data.probe_ids())
        del copy, learning  # always predict with the exported weights, as a resumed filter does
    predicting = preliminary_trainer(trainer, [WeightSync(), RolloutProgressBar(), parts])
    predicting.predict(supervised_copy(model, learning_rate, str(weights)), data, return_predictions=False)
    parallel.gather(None)  # all wait until the last part is written
    data.generator.detach()  # releases the copy, if it decoded with it
