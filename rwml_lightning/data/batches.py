"""What a training step reads: rollouts made on the spot, or labelled answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.prompts import WorldModelPrompt, encode_answer
from rwml_lightning.schema import EpisodeBatch, Transition
from rwml_lightning.seeds import derive_seed

Item = TypeVar("Item")
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Label:
    """A prompt and the answer to imitate, as token ids; ``name`` is what errors call it."""

    name: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """One optimizer step of supervised fine-tuning."""

    step: int
    labels: tuple[Label, ...]


def label_transitions(
    step: int,
    transitions: Sequence[Transition],
    prompt: WorldModelPrompt,
    chat: ChatFormat,
) -> LabelledBatch:
    """The prompts of a step's transitions, and their real next states as answers."""
    prompts = [prompt.encode(chat, transition) for transition in transitions]
    return LabelledBatch(
        step,
        tuple(
            Label(t.transition_id, ids, encode_answer(chat, ids, t.next_state))
            for t, ids in zip(transitions, prompts, strict=True)
        ),
    )


def draw_played(batch: EpisodeBatch, count: int, seed: int) -> list[Transition]:
    """A random draw of what the episodes' actions did, those alone that a model could have foreseen."""
    played = [
        transition
        for group in batch.groups
        for member in group.members
        for transition in member.transitions
        if transition.action and transition.next_state.strip() and transition.knowable
    ]
    played.sort(key=lambda one: derive_seed(seed, "played", batch.step, one.transition_id))
    return played[:count]


class StepLoader(Generic[Item, Batch]):
    """Turns positions into batches: the items (transitions or games) of step n follow from the seed and n alone.

    Each pass is a new permutation, and all passes make up one Lightning epoch, so that a position is one number. The
    length is known, so Lightning fetches no batch ahead: a batch is made after the weights of the step before it have
    reached the generator. ``state_dict`` is the position, and what the items of all steps follow from; nothing is replayed.

    Args:
        items: What to draw from.
        batch_size: Items a step; the last step of a pass may have fewer.
        make: Makes the batch of a step from (step, items).
        seed: Seed of the permutations; ``None`` keeps the order.
        num_passes: How often every item is used.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        make: Callable[[int, Sequence[Item]], Batch],
        seed: int | None,
        num_passes: int = 1,
    ) -> None:
        self.items = items
        self.batch_size = batch_size
        self.make = make
        self.seed = seed
        self.num_passes = num_passes
        self.step = self.first_step = 0

    @cached_property
    def digest(self) -> str:
        """Digest of the items and their order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr(item).encode())
        return digest.hexdigest()

    @property
    def steps_per_pass(self) -> int:
        """Steps that use every item once."""
        return math.ceil(len(self.items) / self.batch_size)

    def __len__(self) -> int:
        return self.num_passes * self.steps_per_pass

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, len(self)):
            self.step = step + 1
            yield self.make(step, self.select(step))

    def select(self, step: int) -> list[Item]:
        """Items of one step."""
        number, index = divmod(step, self.steps_per_pass)
        order: Sequence[int] = range(len(self.items))
        if self.seed is not None:
            keys = [derive_seed(self.seed, "order", number, i) for i in order]
            order = sorted(order, key=keys.__getitem__)
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        return [self.items[i] for i in chosen]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "num_items": len(self.items),
            "items": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = self.first_step = state["step"]
