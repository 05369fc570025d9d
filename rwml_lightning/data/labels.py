"""Labels for supervised learning of next states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import WorldModelPrompt, encode_answer
from rwml_lightning.schema import EpisodeGroup, Label, Transition
from rwml_lightning.seeds import derive_seed


def label_transitions(
    transitions: Iterable[Transition], prompt: WorldModelPrompt, chat: ChatFormat
) -> tuple[Label, ...]:
    """Turn transitions into labels, each with the prompt of the transition and its real next state as the answer."""
    labels = []
    for transition in transitions:
        prompt_ids = prompt.encode(chat, transition)
        answer_ids = encode_answer(chat, prompt_ids, transition.next_state)
        labels.append(Label(transition.transition_id, prompt_ids, answer_ids))
    return tuple(labels)


def draw_played(groups: Iterable[EpisodeGroup], step: int, count: int, seed: int) -> Sequence[Transition]:
    """Draw random transitions from a step's episodes, only from transitions that a model could have predicted."""
    played = [
        transition
        for group in groups
        for member in group.members
        for transition in member.transitions
        if transition.action and transition.next_state.strip() and transition.knowable
    ]
    played.sort(key=lambda one: derive_seed(seed, "played", step, one.transition_id))
    return played[:count]
