"""Inputs of both sides, and their alternation. This module imports neither torch nor a trainer."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from random import Random
from typing import Literal

from rwml_lightning.schema import Transition, Turn

EMBEDDER = "package:all-minilm-l6-v2"
TRANSITION = Transition(
    transition_id="benchmark",
    environment="alfworld",
    game="benchmark",
    task="put some potato in fridge.",
    history=(
        Turn(
            "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a "
            "countertop 1, a fridge 1, a garbagecan 1, a microwave 1 and a sinkbasin 1.",
            "go to fridge 1",
        ),
        Turn("You arrive at fridge 1. The fridge 1 is closed.", "open fridge 1"),
    ),
    observation="You open the fridge 1. The fridge 1 is open. In it, you see an apple 2, a bread 1 and a potato 3.",
    action="take potato 3 from fridge 1",
    next_state="You pick up the potato 3 from the fridge 1.",
)
SYSTEM = (
    "You foresee what a text environment answers. Example: <think></think>\n<next_state>You open the drawer 1. In it, "
    "you see a spoon 1.</next_state>\nExample: <think></think>\n<next_state>You arrive at shelf 1. On the shelf 1, you "
    "see nothing.</next_state>"
)


@dataclass(frozen=True)
class Case:
    """Shape of one step, and the settings of both sides.

    Args:
        model: Model, as an argument of :func:`rwml_lightning.models.resolve_model`.
        prompt_tokens: Number of tokens of the only prompt.
        completion_tokens: Number of tokens of every completion; no end token shortens one.
        group_size: Number of completions.
        num_steps: Number of optimizer steps, warm-up included.
        kl_coefficient: Weight of the KL penalty (k3).
        learning_rate: Constant learning rate.
        threads: Number of torch threads on each side.
        device: Device of both sides.
        precision: Precision of both trainers, in Lightning's spelling. The weights are float32.
    """

    model: str
    prompt_tokens: int
    completion_tokens: int
    group_size: int
    num_steps: int
    kl_coefficient: float = 0.01
    learning_rate: float = 1e-6
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    @property
    def context(self) -> int:
        """Maximum number of tokens of an engine's sequence, with some for the checks of the weights."""
        return self.prompt_tokens + self.completion_tokens + 32


@dataclass(frozen=True)
class Given:
    """Fixed completions and rewards that a side uses instead of generated ones."""

    completions: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]

    @classmethod
    def of(cls, case: Case) -> Given:
        """Draw completions of random byte tokens, in lengths from a quarter of the longest up, and rewards from 0 to 100.

        The rewards are large because TRL adds 1e-4 to their standard deviation and this project adds 1e-6.
        """
        rng = Random(0)
        shortest = max(case.completion_tokens // 4, 1)
        lengths = [rng.randint(shortest, case.completion_tokens) for _ in range(case.group_size)]
        return cls(
            tuple(tuple(rng.randrange(32, 256) for _ in range(length)) for length in lengths),
            tuple(100 * rng.random() for _ in range(case.group_size)),
        )


@dataclass(frozen=True)
class Step:
    """Report of one optimizer step of a side.

    Args:
        seconds: Seconds by phase.
        total: Wall seconds from the start of the turn to its end, with the update of the generator for the next step.
        loss: Loss of the whole step.
        gradient_norm: Gradient norm before clipping.
        completion_lengths: Numbers of tokens, in any order.
        reward: Mean reward of the group.
        peak_gib: Largest resident memory of the side's main process so far, in GiB.
    """

    seconds: Mapping[str, float]
    total: float
    loss: float
    gradient_norm: float
    completion_lengths: tuple[int, ...]
    reward: float
    peak_gib: float


class Turns:
    """Make a side wait for its turn before each step, and report the step after it.

    Args:
        num_steps: Number of turns.
        connection: Connection to the process that starts the turns; without one, every step starts at once.
    """

    def __init__(self, num_steps: int, connection: Connection | None = None) -> None:
        self.num_steps = num_steps
        self.connection = connection
        self.steps: list[Step] = []
        self._start = 0.0

    def wait(self) -> None:
        """Wait for this side's turn; return at once after the last step."""
        if len(self.steps) == self.num_steps:
            return
        if self.connection is not None:
            self.connection.recv()
        self._start = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds of this turn so far."""
        return time.perf_counter() - self._start

    def done(
        self,
        seconds: Mapping[str, float],
        loss: float,
        gradient_norm: float,
        completion_lengths: tuple[int, ...],
        reward: float,
    ) -> None:
        """Report a step, then wait for the next turn."""
        total = self.elapsed()
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        step = Step(dict(seconds), total, loss, gradient_norm, completion_lengths, reward, peak_gib)
        self.steps.append(step)
        if self.connection is not None:
            self.connection.send(step)
        self.wait()


GeneratorName = Literal["hf", "vllm"]
CARD_SHARE = 0.3
"""Share of a card's memory that vLLM gets, on both sides."""
