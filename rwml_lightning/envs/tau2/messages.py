"""What is said in an episode, as chat messages and as text, and actions read out of text. Needs no engine."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CallFormat = Literal["json", "python"]
MALFORMED = "malformed_tool_call"
"""Name of the tool that a call without a readable name and arguments asks for; there is none, and the engine says so."""
STOP = "###STOP###"
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_CALL = re.compile(r"\w+\s*\(.*\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; ``readable`` is False for one that could not be read, which names :data:`MALFORMED`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Action:
    """What an agent does: it says something, or it calls tools. Both empty is an empty reply."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def read_action(action: str | Mapping[str, Any]) -> Action:
    """Read an action.

    A text calls tools when it holds ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (any number of them; what
    stands around them is dropped, since a message of tau2-bench is either text or calls), or when the whole of it is such a
    JSON object or a call as in Python, ``name(key="value")``. Any other text is said to the user.

    Args:
        action: A text, or a chat message ``{"content": text}`` or ``{"tool_calls": [{"name": ..., "arguments": ...}]}``, where a
            call may also be wrapped in ``{"function": ...}`` as chat servers do.
    """
    if not isinstance(action, str):
        calls = action.get("tool_calls") or ()
        if calls:
            return Action(calls=tuple(_from_json(call.get("function", call)) for call in calls))
        return Action(str(action.get("content") or "").strip())
    text = action.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return Action(calls=tuple(_read_call(call.strip()) for call in tagged))
    call = _read_call(text)
    return Action(calls=(call,)) if call.readable else Action(text)


def _read_call(text: str) -> Call:
    if text.startswith("{"):
        try:
            return _from_json(json.loads(text))
        except json.JSONDecodeError as error:
            return Call(MALFORMED, {"error": f"no JSON: {error}"}, readable=False)
    if _PYTHON_CALL.fullmatch(text):
        return _from_python(text)
    return Call(MALFORMED, {"error": "neither JSON nor a call"}, readable=False)


def _from_json(call: Any) -> Call:
    name = call.get("name") if isinstance(call, dict) else None
    arguments = (call.get("arguments", call.get("parameters", {})) or {}) if name else None
    if isinstance(arguments, str):  # chat servers send them as text
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Call(MALFORMED, {"error": "needs a name and an object of arguments"}, readable=False)
    return Call(name, arguments)


def _from_python(text: str) -> Call:
    try:
        expression = ast.parse(text, mode="eval").body
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and not expression.args:
            arguments = {
                keyword.arg: ast.literal_eval(keyword.value) for keyword in expression.keywords if keyword.arg
            }
            if len(arguments) == len(expression.keywords):
                json.dumps(arguments)
                return Call(expression.func.id, arguments)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return Call(MALFORMED, {"error": "no call with named constants"}, readable=False)


def write_action(action: Action, calls: CallFormat) -> str:
    """The text that :func:`read_action` reads back, always the same for the same action.

    Args:
        action: What is done.
        calls: ``json`` writes tool calls in the tags that chat templates use, ``python`` as ``name(key='value')``; several in one
            message are always in tags, since lines of Python could not be told from text.
    """
    if not action.calls:
        return action.text
    alone = calls == "python" and len(action.calls) == 1
    return "\n".join(_write_call(call, alone) for call in action.calls)


def _write_call(call: Call, as_python: bool) -> str:
    if as_python and call.readable:
        arguments = ", ".join(f"{name}={value!r}" for name, value in sorted(call.arguments.items()))
        return f"{call.name}({arguments})"
    content = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{content}\n</tool_call>"


def shorten(text: str, max_chars: int) -> str:
    """The text itself, or its head and tail around a note of how much is left out."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    return f"{text[:head]} [... {len(text) - max_chars} characters ...] {text[len(text) - tail :]}"
