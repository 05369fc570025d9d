"""Selection of transitions from a file: a fixed draw from each split, and only prompts that fit the context."""

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
    """Settings of held-out predictions.

    Args:
        num_transitions: Number of held-out transitions, a fixed random draw; ``null`` uses all.
        group_size: Number of predictions per transition.
        temperature: Sampling temperature; training samples at 1, and 0 is greedy.
        batch_size: Number of prompts generated at once.
        top_p: Probability mass of nucleus sampling; 1, as in training, keeps every token.
    """

    num_transitions: int | None = None
    group_size: int = 1
    temperature: float = 1.0
    batch_size: int = 64
    top_p: float = 1.0


def draw(
    transitions: Sequence[Transition], split: Literal["train", "validation"], count: int | None, seed: int
) -> list[Transition]:
    """Draw transitions from a split at random. The draw is fixed and does not depend on the order of the file.

    A ``count`` of ``None`` draws all.
    """
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
    """Select transitions with prompts that leave room for a completion. A longer prompt would stop the run when it is drawn.

    Args:
        path: File of the transitions, for error messages.
        transitions: Transitions to choose from.
        prompt: Template of the prompt.
        policy: Client of the policy; a prompt and its completion must fit its context.
        max_tokens: Maximum number of tokens of a completion.
        on_broken: ``raise`` raises an error for a longer prompt; ``skip`` leaves it out and logs the number of such prompts.

    Raises:
        ValueError: A prompt is too long and ``on_broken`` is ``raise``, or all prompts are too long.
    """
    context = policy.context
    if context is None:
        return list(transitions)
    room = context - max_tokens
    lengths = {t.transition_id: len(prompt.encode(policy.chat, t)) for t in transitions}
    too_long = [name for name, length in lengths.items() if length > room]
    if too_long:
        text = (
            f"{path}: {len(too_long)} of {len(lengths)} prompts are longer than {room} tokens (context of "
            f"{context} minus data.predictions.sampling.max_tokens); the longest has {max(lengths.values())} tokens; "
            f"example: {too_long[0]}"
        )
        if on_broken == "raise" or len(too_long) == len(lengths):
            raise ValueError(
                f"{text}. Lower data.predictions.prompt.history_turns or data.predictions.prompt.max_observation_chars, raise the generator's "
                "max_model_len, or set data.predictions.on_broken to 'skip'"
            )
        log.warning("%s. They are left out", text)
    return [t for t in transitions if lengths[t.transition_id] <= room]
