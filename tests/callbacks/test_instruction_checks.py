"""Every form check by an answer that passes and answers that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_callbacks.instruction_checks import (
    BULLET,
    CHECKS,
    ends_with,
    has_items,
    has_lines,
    is_json_with,
    is_one_sentence,
    is_yes_or_no,
    passed_checks,
)

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


@pytest.mark.parametrize("answer", ["yes", "No", "no.", "YES."])
def test_yes_and_no_are_answers_alone(answer: str) -> None:
    assert is_yes_or_no(answer)
    assert not is_yes_or_no(f"{answer}X")
    assert not is_yes_or_no(f"X{answer}")


def test_three_words_are_a_sentence() -> None:
    assert is_one_sentence("Water is wet.")


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ('{"a": 1, "b": 2}', True),
        ('```json\n{"b": 2,\n "a": 1}\n```', True),
        ('```{"a": 1, "b": 2}```', True),
        ('{"a": 1}', False),
        ('{"a": 1, "b": 2, "c": 3}', False),
        ('["a", "b"]', False),
        ('{"a": 1, "b": }', False),
        ('```json {"a": 1, "b": 2}', False),
    ],
)
def test_an_object_with_two_keys(answer: str, passes: bool) -> None:
    assert is_json_with("a", "b")(answer) is passes


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("- cat\n- dog", True),
        ("\n  * cat\n\n  \u2022 big dog \n", True),
        ("- cat", False),
        ("- cat\n- dog\n- cow", False),
        ("- cat\ndog", False),
        ("- cat\n-dog", False),
        ("- cat\n-", False),
    ],
)
def test_two_bullets(answer: str, passes: bool) -> None:
    assert has_lines(BULLET, BULLET)(answer) is passes


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("1. fig\n2) plum", True),
        ("\n  1. fig\n\n  2. plum \n", True),
        ("1. fig", False),
        ("1. fig\n2. plum\n3. pear", False),
        ("0. fig\n1. plum", False),
        ("1. fig\n1. plum", False),
        ("1. fig\n2 plum", False),
        ("1. fig\n2.plum", False),
    ],
)
def test_two_numbers(answer: str, passes: bool) -> None:
    assert has_lines("1[.)]", "2[.)]")(answer) is passes


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("a, b", True),
        ("a,b", True),
        ("a", False),
        ("a b", False),
        ("a, b, c", False),
        ("a,  ", False),
        ("a,\nb", False),
    ],
)
def test_two_items(answer: str, passes: bool) -> None:
    assert has_items(2)(answer) is passes


@pytest.mark.parametrize(("answer", "passes"), [("all is well", True), ("well", False), ("well, all", False)])
def test_an_ending(answer: str, passes: bool) -> None:
    assert ends_with("well")(answer) is passes


@pytest.mark.heavy
@given(st.text())
def test_any_answer_is_judged(answer: str) -> None:
    assert set(passed_checks({check.name: answer for check in CHECKS}).values()) <= {True, False}
