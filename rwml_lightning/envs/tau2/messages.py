"""Reading and writing of an agent's actions as text and as chat messages. This module does not need the engine."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CallFormat = Literal["json", "python"]
MALFORMED = "malformed_tool_call"
"""Tool name of an unreadable call. No such tool exists."""
STOP = "###STOP###"
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_CALLS = re.compile(r"\[?\s*\w+\s*\(.*\)\s*\]?", re.DOTALL)
_BEGINS_A_CALL = re.compile(r'\[?\s*\{\s*"(name|function|tool_calls)"\s*:')


@dataclass(frozen=True, slots=True)
class Call:
    """Tool call. An unreadable call has the name :data:`MALFORMED` and the reason as its argument ``error``."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Action:
    """Action of the agent: a text to the user, or tool calls. Without text and calls it is an empty reply."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def read_action(action: str | Mapping[str, Any]) -> Action:
    """Parse an action.

    A text calls tools if it contains ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of times. The text
    around these tags is dropped, since a message of tau2-bench is either text or calls. A text also calls tools if all of it is
    such a JSON object, a list of such objects, or Python calls such as ``name(key="value"); other()``. A text that begins like the
    JSON of a call but cannot be parsed is an unreadable call. Any other text is a message to the user.

    Args:
        action: A text, or a chat message ``{"content": text}`` or ``{"tool_calls": [{"name": ..., "arguments": ...}]}``. A call in
            ``tool_calls`` may also be wrapped in ``{"function": ...}``, as chat servers send it.
    """
    if not isinstance(action, str):
        calls = action.get("tool_calls") or ()
        if calls:
            return Action(calls=_from_json(list(calls)))
        return Action(str(action.get("content") or "").strip())
    text = action.strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return Action(calls=tuple(call for content in tagged for call in _read_calls(content.strip())))
    calls = _read_calls(text)
    is_call = all(call.readable for call in calls) or _BEGINS_A_CALL.match(text)
    return Action(calls=calls) if is_call else Action(text)


def _read_calls(text: str) -> tuple[Call, ...]:
    if _PYTHON_CALLS.fullmatch(text):
        return _from_python(text)
    if not text.startswith(("{", "[")):
        return (_malformed("neither JSON nor a call"),)
    try:
        return _from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        return (_malformed(f"no JSON: {error}"),)


def _malformed(error: str) -> Call:
    return Call(MALFORMED, {"error": error}, readable=False)


def _from_json(value: Any) -> tuple[Call, ...]:
    """Read the calls of one JSON object, of a list of objects, or of a chat server's message with ``tool_calls``."""
    if isinstance(value, dict):
        value = value.get("tool_calls", [value])
    if not isinstance(value, list) or not value:
        return (_malformed("needs a call, or a list of calls"),)
    return tuple(map(_from_object, value))


def _from_object(call: Any) -> Call:
    if isinstance(call, dict) and "function" in call:  # the form of chat servers
        call = call["function"]
    name = call.get("name") if isinstance(call, dict) else None
    arguments = (call.get("arguments", call.get("parameters", {})) or {}) if name else None
    if isinstance(arguments, str):  # chat servers send the arguments as text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return _malformed("needs a name and an object of arguments")
    return _checked(Call(name, arguments))


def _checked(call: Call) -> Call:
    """Return the call, or an unreadable call if it cannot be written as JSON (lone surrogates, deep nesting, other types)."""
    try:
        json.dumps((call.name, call.arguments), ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return _malformed(f"cannot be written as JSON: {type(error).__name__}")
    return call


def _from_python(text: str) -> tuple[Call, ...]:
    try:
        values = [one.value if isinstance(one, ast.Expr) else one for one in ast.parse(text).body]
        calls = [one for value in values for one in (value.elts if isinstance(value, ast.List) else [value])]
        return tuple(map(_from_node, calls))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return (_malformed("no call with named constants"),)


def _from_node(call: ast.AST) -> Call:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
        raise ValueError("no call with named arguments")
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(arguments) < len(call.keywords):
        raise ValueError("arguments without a name, or with the same")
    return _checked(Call(call.func.id, arguments))


def write_action(action: Action, calls: CallFormat) -> str:
    """Write an action as the text that :func:`read_action` parses back. Equal actions give equal texts.

    Args:
        action: Action to write.
        calls: Format of tool calls: ``json`` in the tags of chat templates, or ``python`` as ``name(key='value'); other()``. If one of
            the calls is unreadable, the format is always ``json``.
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
    """Return the text, or if it is longer than ``max_chars`` its head and tail with the number of dropped characters between."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    return f"{text[:head]} [... {len(text) - max_chars} characters ...] {text[len(text) - tail :]}"
