"""What the model reads before it predicts a next state, and what prompts of both stages share."""

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
    """Earlier turns, oldest first, as the lines that stand before the current observation; empty without turns."""
    return "".join(f"Past observation: {turn.observation}\nPast action: {turn.action}\n" for turn in turns)


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
        check_fields("data.predictions.prompt.user", self.user, {"task", "history", "observation", "action"})

    def render(self, transition: Transition, quote: Callable[[str], str] = str) -> str:
        """The user message for one transition; the real next state is no part of it.

        Args:
            transition: What is to be predicted.
            quote: Applied to every text of the environment, after it was shortened.
        """
        recent = transition.history[-self.history_turns :] if self.history_turns else ()
        most = self.max_observation_chars
        turns = [Turn(quote(shorten(turn.observation, most)), quote(turn.action)) for turn in recent]
        return self.user.format(
            task=quote(transition.task),
            history=render_history(turns),
            observation=quote(shorten(transition.observation, most)),
            action=quote(transition.action),
        )

    def encode(self, chat: ChatFormat, transition: Transition) -> tuple[int, ...]:
        """Prompt token ids."""
        return chat.encode_user(self.system, self.render(transition, chat.quote))

    def check(self, chat: ChatFormat) -> None:
        """Raise a ValueError where the chat template cannot show the prompt."""
        chat.encode_user(self.system, "x")


def encode_answer(chat: ChatFormat, prompt_ids: Sequence[int], next_state: str) -> tuple[int, ...]:
    """Label of next-state SFT: empty thinking, the next state, the end token (arXiv 2602.05842, WM SFT)."""
    return chat.encode_label(prompt_ids, format_answer(chat.quote(next_state)))


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
