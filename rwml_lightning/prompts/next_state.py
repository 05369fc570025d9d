"""Prompts for next states, and functions shared by the prompts of all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rwml_lightning.answers import format_answer
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.schema import Transition, Turn

_WORLD_MODEL_SYSTEM = (
    "You foresee what a text environment answers. Think briefly inside <think></think> about what the action does, "
    "then write the immediate next observation, in the wording of the past ones, inside <next_state></next_state>."
)
_WORLD_MODEL_USER = """\
Task: {task}
{history}Current observation: {observation}
Potential action: {action}"""


def render_history(turns: Sequence[Turn]) -> str:
    """Render earlier turns, oldest first, as the lines before the current observation; empty without turns."""
    return "".join(f"Past observation: {turn.observation}\nPast action: {turn.action}\n" for turn in turns)


@dataclass(frozen=True)
class WorldModelPrompt:
    """Template of the prompts for a next state: role, task, history, current observation, action (arXiv 2602.05842, appendix).

    Args:
        history_turns: Maximum number of earlier turns in the prompt (H; the paper does not give it).
        max_observation_chars: Maximum number of characters of a past or current observation; a longer one is shortened in the
            middle. Next states are never shortened.
        system: System message; empty for none.
        user: User message with the fields ``{task}``, ``{history}``, ``{observation}`` and ``{action}``.
    """

    history_turns: int = 2
    max_observation_chars: int = 4000
    system: str = _WORLD_MODEL_SYSTEM
    user: str = _WORLD_MODEL_USER

    def __post_init__(self) -> None:
        check_fields("data.predictions.prompt.user", self.user, {"task", "history", "observation", "action"})

    def render(self, transition: Transition, quote: Callable[[str], str] = str) -> str:
        """Render the user message for one transition. It does not contain the real next state.

        Args:
            transition: Transition to predict.
            quote: Function applied to every text from the environment, after shortening.
        """
        recent = transition.history[-self.history_turns :] if self.history_turns else ()
        max_chars = self.max_observation_chars
        turns = [Turn(quote(shorten(turn.observation, max_chars)), quote(turn.action)) for turn in recent]
        return self.user.format(
            task=quote(transition.task),
            history=render_history(turns),
            observation=quote(shorten(transition.observation, max_chars)),
            action=quote(transition.action),
        )

    def encode(self, chat: ChatFormat, transition: Transition) -> tuple[int, ...]:
        """Return the prompt token ids of a transition."""
        return chat.encode_user(self.system, self.render(transition, chat.quote))

    def check(self, chat: ChatFormat) -> None:
        """Raise a ValueError if the chat template cannot show the prompt."""
        chat.encode_user(self.system, "x")


def encode_answer(chat: ChatFormat, prompt_ids: Sequence[int], next_state: str) -> tuple[int, ...]:
    """Return the label of next-state SFT: empty thinking, the next state, the end token (arXiv 2602.05842, WM SFT)."""
    return chat.encode_label(prompt_ids, format_answer(chat.quote(next_state)))


def shorten(text: str, max_chars: int) -> str:
    """Return the text, or its head and tail around an ellipsis if it is longer than ``max_chars`` characters."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (max_chars - head) :]}"


def check_fields(key: str, template: str, allowed: set[str]) -> None:
    """Raise a ValueError that names the key if a template contains an unknown field."""
    from string import Formatter

    try:
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key} is not a valid template: {error}; write {{{{ and }}}} for braces") from error
    unknown = sorted(used - allowed)
    if unknown:
        raise ValueError(
            f"{key} contains the unknown field {{{unknown[0]}}}; use only "
            + ", ".join(f"{{{n}}}" for n in sorted(allowed))
        )
