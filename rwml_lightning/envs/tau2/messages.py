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
_PYTHON_CALLS = re.compile(r"\w+\s*\(.*\)", re.DOTALL)


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
    JSON object or calls as in Python, ``name(key="value"); other()``. Any other text is said to the user.

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
        return Action(calls=tuple(call for content in tagged for call in _read_calls(content.strip())))
    calls = _read_calls(text)
    return Action(calls=calls) if all(call.readable for call in calls) else Action(text)


def _read_calls(text: str) -> tuple[Call, ...]:
    if text.startswith("{"):
        try:
            return (_from_json(json.loads(text)),)
        except (ValueError, RecursionError) as error:
            return (_malformed(f"no JSON: {error}"),)
    if _PYTHON_CALLS.fullmatch(text):
        return _from_python(text)
    return (_malformed("neither JSON nor a call"),)


def _malformed(error: str) -> Call:
    return Call(MALFORMED, {"error": error}, readable=False)


def _from_json(call: Any) -> Call:
    name = call.get("name") if isinstance(call, dict) else None
    arguments = (call.get("arguments", call.get("parameters", {})) or {}) if name else None
    if isinstance(arguments, str):  # chat servers send them as text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return _malformed("needs a name and an object of arguments")
    return _checked(Call(name, arguments))


def _checked(call: Call) -> Call:
    """The call, unless it cannot be sent: half characters, too deep, no JSON."""
    try:
        json.dumps((call.name, call.arguments), ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return _malformed(f"cannot be written as JSON: {type(error).__name__}")
    return call


def _from_python(text: str) -> tuple[Call, ...]:
    try:
        return tuple(map(_from_statement, ast.parse(text).body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return (_malformed("no call with named constants"),)


def _from_statement(statement: ast.stmt) -> Call:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
        raise ValueError("no call with named arguments")
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(arguments) < len(call.keywords):
        raise ValueError("arguments without a name, or with the same")
    return _checked(Call(call.func.id, arguments))


def write_action(action: Action, calls: CallFormat) -> str:
    """The text that :func:`read_action` reads back, always the same for the same action.

    Args:
        action: What is done.
        calls: ``json`` writes tool calls in the tags that chat templates use, ``python`` as ``name(key='value'); other()``, unless
            one of them could not be read.
    """
    if not action.calls:
        return action.text
    if calls == "python" and all(call.readable for call in action.calls):
        return "; ".join(map(_as_python, action.calls))
    return "\n".join(map(_as_json, action.calls))


def _as_python(call: Call) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in sorted(call.arguments.items()))
    return f"{call.name}({arguments})"


def _as_json(call: Call) -> str:
    content = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{content}\n</tool_call>"


def shorten(text: str, max_chars: int) -> str:
    """The text itself, or its head and tail around a note of how much is left out."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    return f"{text[:head]} [... {len(text) - max_chars} characters ...] {text[len(text) - tail :]}"
