"""Text is shown as it is, but for what a terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_tui.text import age, one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold]text[/]\nsecond", "plain [bold]text[/]\nsecond"),
        ("\x1b[2J\x9b\x00\t\r\x7f", "\\x1b[2J\\x9b\\x00\\t\\r\\x7f"),
        ("\u202eabc\u2028\ufeff", "\\u202eabc\\u2028\\ufeff"),
        ("\ud800", "\\ud800"),
        ("שלום é 👩\u200d🔬", "שלום é 👩\u200d🔬"),
        ("", ""),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text).plain == shown


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=50))
def test_nothing_reaches_the_terminal_that_it_would_obey(text: str) -> None:
    shown = visible(text).plain
    shown.encode()
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n"]


def test_long_text_is_counted() -> None:
    assert visible("x" * 1010, limit=10).plain == "x" * 10 + " ... 1,000 more characters"


def test_one_line() -> None:
    assert one_line("a\nb").plain == "a⏎b"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (3, "3 s"), (119, "119 s"), (300, "5 min"), (7200, "2 h"), (345_600, "4 d")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text
