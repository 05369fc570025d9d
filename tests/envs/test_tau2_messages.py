"""Actions as texts, and texts as actions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.envs.tau2.messages import MALFORMED, Action, Call, read_action, shorten, write_action

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: name not in {"if", "in", "is", "as", "or", "and", "not", "for", "def", "del", "try", "else", "elif", "from",
                              "pass", "with", "class", "while", "yield", "await", "async", "break", "raise", "global",
                              "import", "lambda", "return", "assert", "except", "finally", "continue", "nonlocal"}
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3))


@pytest.mark.heavy
@given(calls=st.lists(CALLS, min_size=1, max_size=3))
def test_calls_are_read_back_from_tags(calls: list[Call]) -> None:
    if not any("tool_call>" in str(call.arguments) for call in calls):
        assert read_action(write_action(Action(calls=tuple(calls)), "json")) == Action(calls=tuple(calls))


@pytest.mark.heavy
@given(calls=st.lists(CALLS, min_size=1, max_size=3))
def test_calls_are_read_back_from_python(calls: list[Call]) -> None:
    if "<tool_call>" not in str([call.arguments for call in calls]):
        assert read_action(write_action(Action(calls=tuple(calls)), "python")) == Action(calls=tuple(calls))


@given(text=st.text(max_size=80))
def test_no_text_is_an_error(text: str) -> None:
    action = read_action(text)
    assert action.text == text.strip() or action.calls
    assert read_action(write_action(action, "json")).calls == action.calls or not all(
        c.readable for c in action.calls
    )


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "look", "arguments": {"id": 1}}', Call("look", {"id": 1})),
        ('  {"name": "look", "parameters": {"id": 1}}\n', Call("look", {"id": 1})),
        ('{"name": "look", "arguments": "{\\"id\\": 1}"}', Call("look", {"id": 1})),
        ('{"name": "look"}', Call("look", {})),
        ("look(id=1, names=['a', 'b'])", Call("look", {"id": 1, "names": ["a", "b"]})),
        ("look()", Call("look", {})),
        ('Let me see.\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', Call("look", {})),
        ('<tool_call>{"name": "look", "arguments": {}}', Call("look", {})),  # cut off at the end
        ("<tool_call>look(id=1)</tool_call>", Call("look", {"id": 1})),
        ('[{"name": "look", "arguments": {"id": 1}}]', Call("look", {"id": 1})),
        ("[look(id=1)]", Call("look", {"id": 1})),
        ('{"type": "function", "function": {"name": "look", "arguments": "{}"}}', Call("look")),
        ('{"tool_calls": [{"function": {"name": "look", "arguments": {}}}]}', Call("look")),
    ],
)
def test_forms_of_a_call(text: str, call: Call) -> None:
    assert read_action(text) == Action(calls=(call,))


@pytest.mark.parametrize(
    "text",
    [
        "look(); listen(to='x')",
        "look()\nlisten(to='x')",
        "<tool_call>look(); listen(to='x')</tool_call>",
        '[{"name": "look"}, {"name": "listen", "arguments": {"to": "x"}}]',
        ' [\n{"name": "look"},\n{"function": {"name": "listen", "arguments": {"to": "x"}}}]\n',
        '<tool_call>[{"name": "look"}, {"name": "listen", "arguments": {"to": "x"}}]</tool_call>',
        '<tool_call>{"name": "look"}</tool_call><tool_call>[{"name": "listen", "parameters": {"to": "x"}}]',
        "[look(), listen(to='x')]",
        "<tool_call>[look(), listen(to='x')]</tool_call>",
    ],
)
def test_several_calls_in_one_message(text: str) -> None:
    assert read_action(text) == Action(calls=(Call("look"), Call("listen", {"to": "x"})))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>look</tool_call>",
        '<tool_call>{"name": "look", "arguments": {"id": 1}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "look", "arguments": "{"}</tool_call>',
        "<tool_call>look(1)</tool_call>",
        '<tool_call>{"name": "look", "arguments": {"id": ' + "[" * 100_000,
        '<tool_call>{"name": "look", "arguments": {"id": ' + "9" * 10_000 + "}}",
        '<tool_call>{"name": "look", "arguments": {"id": "\\ud83d"}}',
        "<tool_call>look(id='\\ud83d')</tool_call>",
        "<tool_call>look(id=open)</tool_call>",
        "<tool_call>look(**{'a': 1})</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>[1]</tool_call>",
        '{"name": "look", "arguments": {"id": 1}',
        '[{"name": "look", "arguments": {}},]',
        '[{"name": "look", "arguments": 3}]',
        '{"function": "look"}',
        '{"tool_calls": {"name": "look"}}',
    ],
)
def test_a_call_that_cannot_be_read_is_one_of_a_tool_that_there_is_not(text: str) -> None:
    (call,) = read_action(text).calls
    assert call.name == MALFORMED
    assert not call.readable
    assert set(call.arguments) == {"error"}


@pytest.mark.parametrize(
    "text",
    [
        "Could you help me (please)?",
        "Total (in USD): 3",
        "[1, 2]",
        "[]",
        "{}",
        '{"total": 3}',
        '["look", "listen"]',
        '[{"total": 3}]',
        "[see](there)",
        "",
        "f(1) is not a call by name.",
        "f(1)",
        "f(); g(1)",
        "f(a=1, a=2)",
    ],
)
def test_any_other_text_is_said(text: str) -> None:
    assert read_action(text) == Action(text)


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ({"content": " Hello. "}, Action("Hello.")),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            Action(calls=(Call("f"),)),
        ),
        ({"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}, Action(calls=(Call("f", {"a": 1}),))),
        ({"tool_calls": [{"name": "f"}, {"name": "g"}]}, Action(calls=(Call("f"), Call("g")))),
        ({}, Action()),
    ],
)
def test_chat_messages_are_read(message: dict[str, Any], action: Action) -> None:
    assert read_action(message) == action


@given(text=st.text(max_size=60), limit=st.integers(3, 60))
def test_what_is_shortened_keeps_head_and_tail(text: str, limit: int) -> None:
    short = shorten(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        assert short.startswith(text[: limit * 2 // 3])
        assert short.endswith(text[len(text) - (limit - limit * 2 // 3) :])
        assert f"[... {len(text) - limit} characters ...]" in short
