"""Planned memory against real peaks: world-model GRPO steps on a whole card, with an engine that sleeps during the updates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from wm_grpo import here
from wm_grpo.case import EMBEDDER, Case

from gpu_parts.device import UsedPeak, peak_gib, reset_peak, watching_card
from gpu_parts.models import random_model_folder
from gpu_parts.report import Report
from rwml_lightning import memory
from rwml_lightning.models import resolve_model
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.grpo import GRPO
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import RolloutBatch

NUM_STEPS = 3
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {
        "optimizer": Optimizer(1e-6, moments="int8", stochastic_rounding=True),
        "grpo": GRPO(kl_coefficient=0.01, reference_device="cpu"),
    },
    "adapters": {"lora": LoRA(rank=64), "grpo": GRPO(kl_coefficient=0.01)},
}
"""How a model is trained, as arguments of the module."""


class MeasuredGRPO(WorldModelGRPO):
    """Takes the memory of the card during rollouts and during updates, and of the trainer's own tensors during updates.

    An update is the training step, in which the engine sleeps. Rollouts are all between two updates: the transfer of the weights
    to the engine, generation and rewards. What precedes the first update is not counted.
    """

    used: UsedPeak
    rollouts_gib = update_gib = tensors_gib = 0.0

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> dict[str, object]:
        rollouts_gib = self.used.take()
        reset_peak()
        result = super().training_step(batch, batch_idx)
        if batch_idx:
            self.rollouts_gib = max(self.rollouts_gib, rollouts_gib)
        self.update_gib = max(self.update_gib, self.used.take())
        self.tensors_gib = max(self.tensors_gib, peak_gib() or 0.0)
        return result


def run(report: Report, shapes: Sequence[str]) -> None:
    for shape in shapes:
        with report.attempt(shape), random_model_folder(shape, torch.bfloat16) as folder:
            for way, settings in WAYS.items():
                with report.attempt(f"{shape}, {way}"):
                    measure(report, f"{shape}, {way}", folder, settings)


def measure(report: Report, label: str, folder: str, settings: Mapping[str, Any]) -> None:
    """Plan the steps of a module, run them, and report both."""
    case = Case(folder, 2048, 256, 16, NUM_STEPS, threads=os.cpu_count() or 1, device="cuda")
    module = MeasuredGRPO(
        model=folder,
        dtype="bfloat16",
        gradient_checkpointing="selective",
        max_tokens_per_micro_batch=8192,
        **settings,
    )
    generator = here.vllm_generator(case, enable_sleep_mode=True)
    hardware = memory.Hardware("cuda", memory.card_memory())
    embedder = memory.Embedder(resolve_model(EMBEDDER), "cuda")
    planned = memory.plan(module, generator, [embedder], hardware)
    with watching_card() as module.used:
        here.fit(case, module, generator)
    report.add(
        label,
        planned_rollouts_gib=planned.total("rollouts") / memory.GIB,
        rollouts_gib=module.rollouts_gib,
        planned_update_gib=planned_update(planned) / memory.GIB,
        update_gib=module.update_gib,
        planned_tensors_gib=planned_update(planned, ("generator", "libraries")) / memory.GIB,
        tensors_gib=module.tensors_gib,
    )


def planned_update(planned: memory.Plan, without: Sequence[str] = ()) -> float:
    """Return the bytes of the larger of the two phases of an update: the pass of the reference, and the policy's."""
    phases = [phase for phase in planned.phases if phase != "rollouts"]
    parts = [part for part in planned.parts if part.name not in without]
    return max(sum(part.num_bytes.get(phase, 0.0) for part in parts) for phase in phases)
