"""Selection of a file's transitions: a fixed draw of each split, of those whose prompt fits the context."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Transition
from rwml_lightning.seeds import derive_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """How held-out predictions are made.

    Args:
        num_transitions: Number of held-out transitions, a fixed random draw; ``null`` uses all.
        group_size: Predictions a transition.
        temperature: Temperature of sampling; training samples at 1, and 0 is greedy.
        batch_size: Prompts generated at once.
        top_p: Nucleus; 1, as in training, keeps every token.
    """

    num_transitions: int | None = None
    group_size: int = 1
    temperature: float = 1.0
    batch_size: int = 64
    top_p: float = 1.0


def draw(
    transitions: Sequence[Transition], split: Literal["train", "validation"], count: int | None, seed: int
) -> list[Transition]:
    """Draw from a split at random; the draw is fixed and does not depend on the order of the file. ``None`` draws all."""
    chosen = [transition for transition in transitions if transition.split == split]
    chosen.sort(key=lambda transition: derive_seed(seed, "draw", transition.transition_id))
    return chosen[:count]


def select_fitting(
    path: Path,
    transitions: Sequence[Transition],
    prompt: WorldModelPrompt,
    policy: PolicyClient,
    max_tokens: int,
    on_broken: Literal["raise", "skip"],
) -> list[Transition]:
    """Select transitions whose prompt leaves room for an answer; a longer one would end the run at the step that draws it.

    Args:
        path: File of the transitions, for errors.
        transitions: Transitions to choose from.
        prompt: Template.
        policy: Has the context that a prompt and its completion must fit.
        max_tokens: Most tokens of a completion.
        on_broken: ``raise`` refuses a longer one, ``skip`` leaves it out and logs how many.

    Raises:
        ValueError: One is too long, or all are.
    """
    context = policy.context
    if context is None:
        return list(transitions)
    room = context - max_tokens
    lengths = {t.transition_id: len(prompt.encode(policy.chat, t)) for t in transitions}
    too_long = [name for name, length in lengths.items() if length > room]
    if too_long:
        text = (
            f"{path}: {len(too_long)} of {len(lengths)} prompts are longer than {room} tokens, which is what a "
            f"context of {context} leaves beside data.predictions.sampling.max_tokens; the longest has {max(lengths.values())}, "
            f"for example {too_long[0]}"
        )
        if on_broken == "raise" or len(too_long) == len(lengths):
            raise ValueError(
                f"{text}. Lower data.predictions.prompt.history_turns or data.predictions.prompt.max_observation_chars, raise the generator's "
                "max_model_len, or set data.predictions.on_broken to 'skip'"
            )
        log.warning("%s. They are left out", text)
    return [t for t in transitions if lengths[t.transition_id] <= room]
