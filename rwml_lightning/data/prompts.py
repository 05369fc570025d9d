"""What the model reads before it predicts a next state, and what prompts of both stages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwml_lightning.rewards.extraction import format_answer
from rwml_lightning.schema import Transition, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORLD_MODEL_SYSTEM = (
    "You foresee what a text environment answers. Think briefly inside <think></think> about what the action does, "
    "then write the immediate next observation, in the wording of the past ones, inside <next_state></next_state>."
)
_WORLD_MODEL_USER = """\
Task: {task}
{history}Current observation: {observation}
Potential action: {action}"""


def render_history(turns: Sequence[Turn]) -> str:
    """Earlier turns, oldest first, as the lines that stand before the current observation; empty without turns."""
    return "".join(f"Past observation: {turn.observation}\nPast action: {turn.action}\n" for turn in turns)


def encode_chat(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> tuple[int, ...]:
    """Token ids up to where the model begins to write; see :func:`encode_messages`."""
    return encode_messages(tokenizer, system, [{"role": "user", "content": user}])


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Token ids up to where the model begins to write; plain text for a tokenizer without a chat template.

    Args:
        tokenizer: The policy's.
        system: System message; empty for none.
        messages: Chat messages after it.
        tools: Schemas of tools, for a chat template that takes them.
    """
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in messages)
        return tuple(tokenizer.encode(f"{system}\n\n{text}\n" if system else text))
    chat = [{"role": "system", "content": system}] if system else []
    chat += [dict(message) for message in messages]
    schemas: Any = list(tools) or None
    ids: Any = tokenizer.apply_chat_template(
        chat, tools=schemas, add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


@dataclass(frozen=True)
class WorldModelPrompt:
    """Asks for the next state: role, task, history, current observation, potential action (arXiv 2602.05842, appendix).

    Args:
        history_turns: Most earlier turns shown (H; the paper does not give it).
        max_observation_chars: Longer past and current observations are cut in the middle, next states never.
        system: System message; empty for none.
        user: User message with the fields ``{task}``, ``{history}``, ``{observation}`` and ``{action}``.
    """

    history_turns: int = 2
    max_observation_chars: int = 4000
    system: str = _WORLD_MODEL_SYSTEM
    user: str = _WORLD_MODEL_USER

    def __post_init__(self) -> None:
        check_fields("data.prompt.user", self.user, {"task", "history", "observation", "action"})

    def render(self, transition: Transition) -> str:
        """The user message for one transition; the real next state is no part of it."""
        recent = transition.history[-self.history_turns :] if self.history_turns else ()
        turns = [Turn(shorten(turn.observation, self.max_observation_chars), turn.action) for turn in recent]
        return self.user.format(
            task=transition.task,
            history=render_history(turns),
            observation=shorten(transition.observation, self.max_observation_chars),
            action=transition.action,
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, transition: Transition) -> tuple[int, ...]:
        """Prompt token ids."""
        return encode_chat(tokenizer, self.system, self.render(transition))


def encode_answer(tokenizer: PreTrainedTokenizerBase, next_state: str) -> tuple[int, ...]:
    """Label of next-state SFT: empty thinking, the next state, the end token (arXiv 2602.05842, WM SFT)."""
    return encode_label(tokenizer, format_answer(next_state))


def encode_label(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[int, ...]:
    """An answer to imitate, and the end token."""
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end token (eos_token), so the model could not learn where to stop"
        )
    return (*ids, tokenizer.eos_token_id)


def shorten(text: str, max_chars: int) -> str:
    """The text itself, or its head and tail around an ellipsis when it is longer than ``max_chars`` characters."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (max_chars - head) :]}"


def check_fields(key: str, template: str, allowed: set[str]) -> None:
    """Raise a ValueError that names the key when a template asks for a field that does not exist."""
    from string import Formatter

    try:
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key} is no template: {error}; write {{{{ and }}}} for braces") from error
    unknown = sorted(used - allowed)
    if unknown:
        raise ValueError(
            f"{key} asks for {{{unknown[0]}}}; it may use " + ", ".join(f"{{{n}}}" for n in sorted(allowed))
        )
