"""Type checks for the answers of an environment, made in the process that steps the environment.

The checked answer has plain Python types, and all later code relies on them. An answer of another type ends its episode with an
error that names the type that is needed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from rwml_lightning.envs.chat import Message, as_text
from rwml_lightning.printable import well_formed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observation:
    """Checked answer of an environment to a reset or a step.

    Args:
        obs: Text, or chat messages with ``role`` and ``content``.
        reward: Reward of the step; 0 after a reset.
        terminated: Whether the environment ended the episode.
        truncated: Whether a limit ended the episode.
        info: The environment's ``info`` of this reset or step.
    """

    obs: str | tuple[Message, ...]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated

    @property
    def messages(self) -> tuple[Message, ...]:
        """The observation as chat messages. A text becomes one message of the role ``user``, an empty one no message."""
        if isinstance(self.obs, str):
            return ({"role": "user", "content": self.obs},) if self.obs else ()
        return self.obs

    @property
    def text(self) -> str:
        """The observation as one text."""
        return as_text(self.messages)


def read_reset(answer: Any) -> Observation:
    """Check and convert the answer of ``reset``.

    Raises:
        ValueError: The answer is not (observation, info) with the types that docs/environments.md names.
    """
    obs, info = _split_answer(answer, ("observation", "info"))
    return Observation(_observation(obs), info=_info(info))


def read_step(answer: Any) -> Observation:
    """Check and convert the answer of ``step``.

    Raises:
        ValueError: The answer is not (observation, reward, terminated, truncated, info) with the types that docs/environments.md
            names.
    """
    names = ("observation", "reward", "terminated", "truncated", "info")
    obs, reward, terminated, truncated, info = _split_answer(answer, names)
    return Observation(
        _observation(obs),
        _number("reward", reward),
        _flag("terminated", terminated),
        _flag("truncated", truncated),
        _info(info),
    )


def read_walkthrough(answer: Any) -> tuple[str, ...]:
    """Check and convert the answer of ``walkthrough``: the actions of the expert.

    Raises:
        ValueError: An action is not a text.
    """
    return _texts("walkthrough()", answer)


def read_tasks(tasks: Any) -> dict[str, list[str]]:
    """Return task ids by split. A list without splits becomes the split ``train``.

    Raises:
        ValueError: An id is not a text, is empty, or contains a lone surrogate and so could not be stored unchanged.
    """
    splits = tasks if isinstance(tasks, Mapping) else {"train": tasks}
    named = {
        _text("a split of tasks", split): _items(f"tasks[{split!r}]", ids) for split, ids in splits.items()
    }
    for split, ids in named.items():
        for place, task in enumerate(ids):
            if not isinstance(task, str) or not task or well_formed(task) != task:
                raise _invalid_value(
                    f"tasks[{split!r}][{place}]", task, "a non-empty text without lone surrogates"
                )
    return {split: [str.__str__(task) for task in ids] for split, ids in named.items()}


def _invalid_value(name: str, value: Any, needed: str) -> ValueError:
    kind = "None" if value is None else type(value).__name__
    shown = ascii(value)[:80] if isinstance(value, str) else str(value) if isinstance(value, Real) else ""
    return ValueError(f"{name} is {f'{shown} ({kind})' if shown else kind}, not {needed}")


def _split_answer(answer: Any, names: Sequence[str]) -> Any:
    if not isinstance(answer, tuple | list):
        raise _invalid_value("the answer", answer, f"({', '.join(names)})")
    if len(answer) != len(names):
        raise ValueError(f"the answer has {len(answer)} values, not {len(names)}: ({', '.join(names)})")
    return answer


def _observation(value: Any) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        return _text("observation", value)
    if not isinstance(value, list | tuple):
        raise _invalid_value("observation", value, "text or a list of chat messages")
    return tuple(_message(f"observation[{place}]", one) for place, one in enumerate(value))


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise _invalid_value(name, value, "a chat message with 'role' and 'content'")
    return {key: _text(f"{name}[{key!r}]", value.get(key)) for key in ("role", "content")}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid_value(name, value, "text")
    plain = str.__str__(value)
    text = well_formed(plain)
    if text != plain:
        _report_surrogate(name)
    return text


@cache
def _report_surrogate(name: str) -> None:
    log.warning(
        "%s contains a lone surrogate. Each one is replaced by U+FFFD; this is logged once for each key", name
    )


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _invalid_value(name, value, "True or False")
    return bool(value)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        value = number = math.inf
    if not math.isfinite(number):
        raise _invalid_value(name, value, "a finite number")
    return number


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _invalid_value(name, value, "a list of texts")
    return tuple(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(f"{name}[{place}]", one) for place, one in enumerate(_items(name, value)))


def _numbers(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise _invalid_value(name, value, "a mapping from names to numbers")
    return {_text(f"a key of {name}", key): _number(f"{name}[{key!r}]", one) for key, one in value.items()}


def _tools(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    try:
        tools = json.loads(_text(name, json.dumps(list(value), ensure_ascii=False)))
    except (TypeError, ValueError):
        tools = [None]
    if not all(isinstance(tool, dict) for tool in tools):
        raise _invalid_value(name, value, "a list of JSON schemas")
    return tuple(tools)


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        ("task", "instructions", "background", "kind", "action", "next_state", "task_type"), _text
    ),
    **dict.fromkeys(("valid", "knowable", "won"), _flag),
    "admissible_actions": _texts,
    "tools": _tools,
    "measures": _numbers,
}
"""Check and conversion of each key of ``info`` that prompts, records and measures read."""


def _info(info: Any) -> dict[str, Any]:
    """Convert the values of known keys to plain types. A known key with the value ``None`` is dropped."""
    if not isinstance(info, Mapping):
        raise _invalid_value("info", info, "a mapping")
    return {
        key: _READERS[key](f"info[{key!r}]", value) if key in _READERS else value
        for key, value in info.items()
        if value is not None or key not in _READERS
    }
