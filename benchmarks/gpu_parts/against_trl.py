"""One world-model GRPO step against TRL's GRPOTrainer on a card, with vLLM on both sides.

Losses and gradient norms of a few steps on given completions are compared in float32 first, as in ``wm_grpo_vs_trl.py``. The
timed steps are in mixed precision. One side runs after the other, so that each has the card to itself.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from wm_grpo.case import Case, Step
from wm_grpo_vs_trl import (
    CHECK_LEARNING_RATE,
    CHECK_STEPS,
    HERE,
    Options,
    Side,
    compare,
    phases,
)

from gpu_parts.device import watching_card
from gpu_parts.models import random_model_folder
from gpu_parts.report import Report

SHAPES = ("tiny", "1.5B")
"""Shapes whose weights, gradients and moments fit on a card in float32 beside an engine."""
NUM_STEPS = 4
SIDES: dict[str, Options] = {
    HERE: {},
    "TRL": {"gradient_checkpointing": True},
    "TRL, no checkpointing": {"gradient_checkpointing": False},
}


def run(report: Report, shapes: Sequence[str]) -> None:
    for shape in [shape for shape in shapes if shape in SHAPES]:
        with report.attempt(shape), random_model_folder(shape, torch.float32) as folder:
            case = Case(
                folder,
                1024,
                128,
                16,
                NUM_STEPS,
                threads=os.cpu_count() or 1,
                device="cuda",
                precision="bf16-mixed",
            )
            with report.attempt(f"{shape}, equal losses"):
                check(report, shape, case)
            for name, options in SIDES.items():
                with report.attempt(f"{shape}, {name}"):
                    measure(report, f"{shape}, {name}", name, case, {**options, "generator_name": "vllm"})


def check(report: Report, shape: str, case: Case) -> None:
    """Compare losses and gradient norms on given completions, with the tolerances of ``wm_grpo_vs_trl.py``."""
    small = replace(
        case,
        prompt_tokens=128,
        completion_tokens=32,
        group_size=8,
        num_steps=CHECK_STEPS,
        learning_rate=CHECK_LEARNING_RATE,
        precision="32-true",
    )
    try:
        ((loss, gradient),) = compare(small, {name: SIDES[name] for name in (HERE, "TRL")})
    except SystemExit as error:
        raise RuntimeError(str(error)) from None
    report.add(f"{shape}, equal losses", loss=loss, gradient_norm=gradient)


def measure(report: Report, label: str, name: str, case: Case, options: Options) -> None:
    """Run all steps of a side, and report the median of those after the first."""
    try:
        with watching_card() as used, Side(name, case, options) as side:
            before = used.take()
            steps: list[Step] = [side.step() for _ in range(case.num_steps)]
            peak = used.take() - before
    except SystemExit as error:
        raise RuntimeError(str(error)) from None
    seconds = {f"{phase}_s": value for phase, value in phases(steps[1:]).items()}
    lengths = statistics.mean(length for step in steps for length in step.completion_lengths)
    report.add(label, **seconds, completion_tokens=lengths, card_gib=peak)
