"""The step in this project: WorldModelGRPO with a Lightning trainer and the callbacks of every run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from rwml_lightning.cli import default_callbacks, quieten
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator
from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.modules.grpo import GRPO
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.rewards import EmbeddingReward, NextStateReward
from rwml_lightning.run import Run, open_run_folder
from rwml_lightning.schema import Completion, RolloutBatch, Sampling, Score, Transition
from wm_grpo.case import (
    CARD_SHARE,
    EMBEDDER,
    SYSTEM,
    TRANSITION,
    Case,
    GeneratorName,
    Given,
    Turns,
)


@dataclass(frozen=True)
class FixedLengthPrompt(WorldModelPrompt):
    """World-model prompt of exactly ``num_tokens`` tokens: its tokens are repeated and cut at the left."""

    num_tokens: int = 512
    system: str = SYSTEM

    def encode(self, chat: ChatFormat, transition: Transition) -> tuple[int, ...]:
        ids = super().encode(chat, transition)
        return (ids * (self.num_tokens // len(ids) + 1))[-self.num_tokens :]


class GivenGenerator(HFGenerator):
    """Return the given completions for every prompt."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        # The log-probabilities are 0 and never read, because the loss has no correction for the generator.
        completions = [
            Completion(ids, (0.0,) * len(ids), "length", self.policy_version)
            for ids in self.given.completions
        ]
        return [completions for _ in prompts]


class GivenReward:
    """Return the given rewards for every group."""

    success_similarity = 1.0

    def __init__(self, given: Given) -> None:
        self.given = given

    def score(self, transitions: Sequence[Transition], predictions: Sequence[str | None]) -> list[Score]:
        return [Score(reward, None, False) for reward in self.given.rewards]


class StepTurns(L.Callback):
    """Report each step after all other callbacks. The first turn begins before the model is loaded."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wait for the first turn."""
        self.turns.wait()

    def on_step_metrics(
        self, trainer: L.Trainer, module: Any, metrics: Mapping[str, float], batch: RolloutBatch
    ) -> None:
        """Report a step."""
        (group,) = batch.groups
        rewards = [prediction.score.reward for prediction in group.predictions]
        self.turns.done(
            {**batch.seconds, "sync": metrics["time/sync"]},
            metrics["train/loss"],
            metrics["train/grad_norm"],
            tuple(len(prediction.completion.token_ids) for prediction in group.predictions),
            sum(rewards) / len(rewards),
        )


def prompt_ids(case: Case) -> tuple[int, ...]:
    """Return the token ids of the prompt of both sides."""
    chat = ChatFormat(load_tokenizer(case.model))
    return FixedLengthPrompt(num_tokens=case.prompt_tokens).encode(chat, TRANSITION)


def run(case: Case, turns: Turns, generator_name: GeneratorName = "hf", given: Given | None = None) -> None:
    """Run all steps.

    Args:
        case: Shape and settings of the step.
        turns: Start signals and reports of the steps.
        generator_name: ``hf`` decodes with the trainer's own module, ``vllm`` with an engine in its own process.
        given: Completions and rewards to use instead of generated ones.
    """
    generator: Generator
    reward: NextStateReward | None = None
    if given is not None:
        generator, reward = GivenGenerator(given), GivenReward(given)
    elif generator_name == "hf":
        generator = HFGenerator(end_token_ids=())
    else:
        generator = vllm_generator(case)
    module = WorldModelGRPO(
        model=case.model,
        gradient_checkpointing="selective",
        optimizer=Optimizer(case.learning_rate),
        grpo=GRPO(kl_coefficient=case.kl_coefficient, importance_cap=None),  # TRL only corrects for vLLM
    )
    fit(case, module, generator, reward, [StepTurns(turns)])


def vllm_generator(case: Case, enable_sleep_mode: bool = False) -> VLLMGenerator:
    """Return an engine for the sequences of a case, not started."""
    return VLLMGenerator(
        case.model,
        max_model_len=case.context,
        gpu_memory_utilization=CARD_SHARE,
        kv_cache_gib=0.5 if case.device == "cpu" else None,
        end_token_ids=(),
        enable_sleep_mode=enable_sleep_mode,
    )


def fit(
    case: Case,
    module: WorldModelGRPO,
    generator: Generator,
    reward: NextStateReward | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train a module on the steps of a case, with the callbacks of every run.

    Args:
        case: Shape of the step, device and precision.
        module: Module to train.
        generator: Generator of the completions; it is closed at the end.
        reward: Reward; default: cosine similarity.
        callbacks: Callbacks after those of every run.
    """
    quieten()
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        transitions = Path(folder) / "transitions.parquet"
        write_transitions(transitions, [TRANSITION])
        predictions = Predictions(
            str(transitions),
            reward or EmbeddingReward(EMBEDDER, mode="cosine", device=case.device),
            prompt=FixedLengthPrompt(num_tokens=case.prompt_tokens),
            sampling=Sampling(max_tokens=case.completion_tokens),
            prompts_per_step=1,
            group_size=case.group_size,
            num_passes=case.num_steps,
        )
        data = RolloutDataModule(generator, predictions=predictions)
        record = open_run_folder(Run(name="benchmark", root=folder), "")
        trainer = L.Trainer(
            accelerator=case.device,
            devices=1,
            precision=case.precision,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=[*default_callbacks([], record, None), *callbacks],
        )
        try:
            trainer.fit(module, data)
        finally:
            data.close()
