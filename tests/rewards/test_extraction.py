"""What counts as a prediction, in what a model may write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.rewards import Answer, extract_answer, format_answer

TAGS = ("<think>", "</think>", "<next_state>", "</next_state>")
hostile = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(TAGS)), max_size=12).map("".join)


@given(
    next_state=st.text(min_size=1).filter(lambda text: text.strip() and "</next_state>" not in text),
    thinking=st.text().filter(lambda text: "</think>" not in text),
)
def test_what_is_formatted_is_read_back(next_state: str, thinking: str) -> None:
    answer = extract_answer(format_answer(next_state, thinking))
    assert answer == Answer(thinking.strip(), next_state.strip())


@given(hostile, hostile)
def test_tags_in_the_thinking_are_drafts(draft: str, next_state: str) -> None:
    draft = draft.replace("</think>", "")
    found = extract_answer(f"<think>{draft}</think><next_state>{next_state}</next_state>").next_state
    assert found == (next_state.split("</next_state>")[0].strip() or None)


@given(hostile)
def test_any_text_is_read(text: str) -> None:
    answer = extract_answer(text)
    assert answer.next_state is None or (answer.next_state in text and answer.next_state.strip())
    assert answer.thinking in text


@pytest.mark.parametrize(
    ("text", "thinking", "next_state"),
    [
        ("", "", None),
        ("You open the safe.", "", None),
        ("<next_state></next_state>", "", None),
        ("<next_state> \n\t </next_state>", "", None),
        ("<next_state>The safe is open.", "", None),
        ("The safe is open.</next_state>", "", None),
        ("<next_state>a</next_state><next_state>b</next_state>", "", "a"),
        ("<think>hm</think> so <next_state>\nline\nline\n</next_state> bye", "hm", "line\nline"),
        ("<think><next_state>draft</next_state></think>", "<next_state>draft</next_state>", None),
        ("<next_state>a</next_state><think>late</think>", "late", None),
        ("<NEXT_STATE>a</NEXT_STATE>", "", None),
    ],
)
def test_cases(text: str, thinking: str, next_state: str | None) -> None:
    assert extract_answer(text) == Answer(thinking, next_state)


def test_repeated_open_tags_take_no_time() -> None:
    started = time.monotonic()
    assert extract_answer("<think>" * 2000 + "<next_state>" * 2000).next_state is None
    assert time.monotonic() - started < 5
