"""Every form check by an answer that passes and answers that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_callbacks.instruction_checks import CHECKS, is_one_sentence, passed_checks

ANSWERS = {
    "one_word": ("Blue.", "It is blue", ""),
    "yes_no": ("Yes.", "Yes, it is.", ""),
    "json": ('```json\n{"fruit": "pear", "color": "green"}\n```', '{"fruit": "pear"}', '["fruit", "color"]', "pear"),
    "bullets": ("- cat\n\n- dog\n- cow", "- cat\n- dog", "Animals:\n- cat\n- dog\n- cow", "cat\ndog\ncow"),
    "numbers": ("1. pear\n2. fig\n3. plum", "1. pear\n2. fig", "1. pear\n1. fig\n1. plum", "pear, fig, plum"),
    "sentence": ("A river is flowing water.", "It is water. It flows.", "Water flows", "Water."),
    "items": ("Monday, Tuesday, Friday, Sunday", "Monday, Tuesday", "Mon, Tue,\nWed, Thu", "a, b, , d"),
    "capitals": ("HELLO, YOU!", "Hello", "123"),
    "lower_case": ("a stream of water.", "A stream", "123"),
    "number": ("8", "eight", "8 legs", ""),
    "ending": ("Bread is baked. THE END", "Bread is baked.", "THE END", "THE END. Bread"),
    "quotes": ('"Hello"', "Hello", '"Hello" he said', '""'),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_one_answer_passes_and_the_others_do_not(check) -> None:
    right, *wrong = ANSWERS[check.name]
    assert check.passes(right)
    assert not any(check.passes(answer) for answer in wrong)


def test_thinking_and_white_space_do_not_count() -> None:
    answers = {check.name: f"<think>Hm, 1?\n</think>\n {ANSWERS[check.name][0]} \n" for check in CHECKS}
    assert all(passed_checks(answers).values())
    assert not any(passed_checks(dict.fromkeys(answers, "<next_state>You see 2.</next_state>")).values())


def test_three_words_are_a_sentence() -> None:
    assert is_one_sentence("Water is wet.")


@given(st.text())
def test_any_answer_is_judged(answer: str) -> None:
    assert set(passed_checks({check.name: answer for check in CHECKS}).values()) <= {True, False}
