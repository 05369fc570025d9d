"""Self-reflection: a model sees the outcome of each action and explains why the expert's action was the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rwml_lightning.answers import TAGS, read_reply
from rwml_lightning.episodes.expert import ExpertStep
from rwml_lightning.prompts.next_state import check_fields
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards.server import NoAnswerError, Request, Server, ServerClient
from rwml_lightning.schema import Sampling
from rwml_lightning.seeds import derive_seed

log = logging.getLogger(__name__)
_USER = """\
Task: {task}
Observation: {observation}
What each action would lead to:
{outcomes}
The best of them is: {action}
Explain in at most three sentences, as thoughts before acting, why it is better than the others. You would not know the \
outcomes yet: reason towards them."""


@dataclass(frozen=True)
class Reflection:
    """Settings of reflections (arXiv 2510.08558, section 4.3).

    Args:
        num_alternatives: Number of other actions at each step that the prompt shows with their outcomes.
        user: Prompt for a reflection, with the fields ``{task}``, ``{observation}``, ``{outcomes}`` and ``{action}``.
        max_tokens: Maximum number of tokens of a reflection.
        temperature: Sampling temperature.
        server: Chat model that writes the reflections; ``null`` uses the policy itself.
    """

    num_alternatives: int = 3
    user: str = _USER
    max_tokens: int = 256
    temperature: float = 1.0
    server: Server | None = None

    def __post_init__(self) -> None:
        key = "data.episodes.demonstrations.reflection"
        check_fields(f"{key}.user", self.user, {"task", "observation", "outcomes", "action"})
        if self.num_alternatives < 1:
            raise ValueError(f"{key}.num_alternatives is {self.num_alternatives}; it must be at least 1")

    def ask(self, step: ExpertStep, quote: Callable[[str], str] = str) -> str:
        """Return the prompt about one step, with ``quote`` applied to every text from the environment."""
        known = sorted([step.transition, *step.alternatives], key=lambda one: one.action)
        return self.user.format(
            task=quote(step.transition.task),
            observation=quote(step.transition.observation),
            outcomes="\n".join(f"- {quote(one.action)}: {quote(one.next_state)}" for one in known),
            action=quote(step.transition.action),
        )


def write_reflections(
    settings: Reflection,
    steps: Sequence[ExpertStep],
    policy: PolicyClient,
    seed: int,
) -> list[str]:
    """Write the thoughts for each step, on one line.

    The line is empty if the server gave no answer, the prompt does not fit the context, or there was no other action to
    compare with.
    """
    asked = [number for number, step in enumerate(steps) if step.alternatives]
    if settings.server is None:
        room = math.inf if policy.context is None else policy.context - settings.max_tokens
        encoded = {
            number: policy.chat.encode_user("", settings.ask(steps[number], policy.chat.quote))
            for number in asked
        }
        asked = [number for number, prompt in encoded.items() if len(prompt) <= room]
        if len(asked) < len(encoded):
            log.warning(
                "%d of %d reflections do not fit the context", len(encoded) - len(asked), len(encoded)
            )
        prompts = [encoded[number] for number in asked]
        seeds = [[derive_seed(seed, "reflection", steps[n].transition.transition_id)] for n in asked]
        written = (
            policy.generator.generate(prompts, Sampling(settings.max_tokens, settings.temperature), seeds)
            if prompts
            else []
        )
        found = [
            read_reply(policy.chat.decode(completion), policy.chat.in_thinking(prompt)).said
            for prompt, (completion,) in zip(prompts, written, strict=True)
        ]
    else:
        client = ServerClient(settings.server, "data.episodes.demonstrations.reflection.server")
        answers = client.ask("chat/completions", [_request(settings, settings.ask(steps[n])) for n in asked])
        lost = [answer for answer in answers if isinstance(answer, NoAnswerError)]
        if lost:
            log.warning(
                "%d of %d reflections are empty; the first error: %s", len(lost), len(answers), lost[0]
            )
        found = ["" if isinstance(answer, NoAnswerError) else read_reply(answer).said for answer in answers]
    thoughts = dict(zip(asked, found, strict=True))
    return [one_line(thoughts.get(number, "")) for number in range(len(steps))]


def one_line(text: str) -> str:
    """Return the text without line breaks and without the tags that mark the parts of an answer."""
    for tag in TAGS:
        text = text.replace(tag, " ")
    return " ".join(text.split())


def _request(settings: Reflection, text: str) -> Request[str]:
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
    return Request(lambda failures: body, _read)


def _read(body: Any) -> str:
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the answer holds no text in choices[0].message.content")
    return text
