"""The step in TRL: its GRPOTrainer with transformers' generate, or vLLM on a card. A subclass takes times and changes nothing else."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rwml_lightning.answers import extract_answer
from rwml_lightning.models import load_tokenizer, resolve_model
from rwml_lightning.rewards import EmbeddingReward
from wm_grpo.case import CARD_SHARE, EMBEDDER, TRANSITION, Case, GeneratorName, Given, Turns
from wm_grpo.here import prompt_ids


class TimedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with its only prompt as token ids; stores times and values of the last step for the report."""

    prompt_ids: tuple[int, ...]
    sync_s = 0.0

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.prompt_ids) for _ in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        self.sync_s = 0.0
        start = time.perf_counter()
        generated = super()._generate(prompts)
        self.generate_s = time.perf_counter() - start - self.sync_s
        return generated

    def time_sync(self) -> None:
        """Take the time of weight updates of vLLM, which are a part of the next generation."""
        sync = self.vllm_generation.sync_weights

        def timed_sync() -> None:
            start = time.perf_counter()
            sync()
            torch.cuda.synchronize()
            self.sync_s = time.perf_counter() - start

        self.vllm_generation.sync_weights = timed_sync

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Any:
        start = time.perf_counter()
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        self.reward_s = time.perf_counter() - start
        self.mean_reward = float(rewards.mean())
        self.lengths = tuple(len(ids) for ids in completion_ids)
        return rewards

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        self.loss = loss.item()
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.gradient_norm = float(norm)
        return norm


class StepTurns(TrainerCallback):
    """Report each step after its optimizer step.

    Without vLLM, TRL generates with the trained weights, so there is no update of a generator. With vLLM, the update for a step is
    a part of it: the first step has one, too.
    """

    trainer: TimedGRPOTrainer

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        seconds = {"generate": trainer.generate_s, "reward": trainer.reward_s, "sync": trainer.sync_s}
        rest = self.turns.elapsed() - sum(seconds.values())  # reference, loss, backward, optimizer
        self.turns.done(
            {**seconds, "update": rest},
            trainer.loss,
            trainer.gradient_norm,
            trainer.lengths,
            trainer.mean_reward,
        )


def run(
    case: Case,
    turns: Turns,
    gradient_checkpointing: bool = True,
    given: Given | None = None,
    generator_name: GeneratorName = "hf",
) -> None:
    """Run all steps.

    Args:
        case: Shape and settings of the step.
        turns: Start signals and reports of the steps.
        gradient_checkpointing: TRL's setting; its default is true, which saves memory and costs time.
        given: Completions and rewards to use instead of generated ones.
        generator_name: ``hf`` for transformers' generate, ``vllm`` for an engine in this process, on a card alone.
    """
    use_vllm = generator_name == "vllm" and given is None
    torch.set_num_threads(case.threads)
    ids = prompt_ids(case)
    embedding = EmbeddingReward(EMBEDDER, mode="cosine", device=case.device)

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        if given is not None:
            return list(given.rewards)
        predictions = [extract_answer(text).next_state for text in completions]
        return [score.reward for score in embedding.score([TRANSITION] * len(predictions), predictions)]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        assert given is not None
        return {
            "prompt_ids": [list(ids) for _ in prompts],
            "completion_ids": [list(completion) for completion in given.completions],
            "logprobs": None,
        }

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=case.device == "cpu",
            bf16=case.precision == "bf16-mixed",
            use_vllm=use_vllm,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=CARD_SHARE,
            vllm_max_model_length=case.context,
            vllm_importance_sampling_correction=False,  # as on the other side
            per_device_train_batch_size=case.group_size,
            num_generations=case.group_size,
            max_completion_length=case.completion_tokens,
            generation_kwargs={"min_tokens" if use_vllm else "min_new_tokens": case.completion_tokens},
            beta=case.kl_coefficient,
            loss_type="grpo",
            use_bias_correction_kl=False,  # GRPO's own KL term; TRL's default multiplies it by the ratio
            max_steps=case.num_steps,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=gradient_checkpointing,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        callback = StepTurns(turns)
        trainer = TimedGRPOTrainer(
            str(resolve_model(case.model)),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["the given token ids"] * case.num_steps}),
            processing_class=load_tokenizer(case.model),
            callbacks=[callback],
            rollout_func=rollout if given is not None else None,
        )
        trainer.prompt_ids = ids
        callback.trainer = trainer
        if use_vllm:
            trainer.time_sync()
        trainer.train()
