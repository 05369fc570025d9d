"""Words that differ, marked in both texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from rwml_tui.difference import MISSED, MOST_WORDS, WRONG, mark_differences


def marked(text: Text) -> list[str]:
    return [text.plain[span.start : span.end] for span in text.spans if span.style in (WRONG, MISSED)]


def test_words_that_the_other_has_not_are_marked() -> None:
    predicted, real = mark_differences(
        "You open the drawer 1. In it, you see a mug 2.",
        "You open the drawer 1. In it, you see a pen 1 and a mug 2.",
    )
    assert marked(predicted) == []
    assert marked(real) == ["pen", "1", "and", "a"]
    predicted, real = mark_differences("the drawer 1 is open", "the drawer 2 is closed")
    assert (marked(predicted), marked(real)) == (["1", "open"], ["2", "closed"])


@given(st.text(max_size=80), st.text(max_size=80))
def test_texts_stay_what_they_are(predicted: str, real: str) -> None:
    left, right = mark_differences(predicted, real)
    same_left, same_right = (
        mark_differences(predicted, predicted)[0],
        mark_differences(real, real)[1],
    )
    assert (left.plain, right.plain) == (same_left.plain, same_right.plain)
    assert not marked(same_left) + marked(same_right)


def test_very_long_texts_are_shown_unmarked() -> None:
    predicted, real = mark_differences("a " * MOST_WORDS, "b")
    assert not marked(predicted) + marked(real)
