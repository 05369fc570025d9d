"""What counts as an answer, in what a model may write."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rwml_lightning.answers import (
    TAGS,
    Answer,
    after_prompt,
    ends_in_thinking,
    extract_answer,
    format_answer,
    read_reply,
)
from rwml_lightning.prompts.action import ActionPrompt, parse_action

THINKING = [
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"), ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
]  # fmt: skip
hostile = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(TAGS)), max_size=12).map("".join)
harmless = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), max_size=12)
nested = st.recursive(
    st.one_of(harmless, st.sampled_from(["<next_state>A</next_state>", "<action>A</action>"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.builds(lambda pair, text: pair[0] + text + pair[1], st.sampled_from(THINKING), inner),
    ),
    max_leaves=8,
)
"""Thoughts in which as much thinking is closed as was opened, drafts among them."""


@given(
    next_state=st.text(min_size=1).filter(lambda text: text.strip() and not any(tag in text for tag in TAGS)),
    thinking=nested,
)
def test_what_is_formatted_is_read_back(next_state: str, thinking: str) -> None:
    answer = extract_answer(format_answer(next_state, thinking))
    assert answer == Answer(thinking.strip(), next_state.strip())


@pytest.mark.parametrize(("opening", "closing"), THINKING)
@given(draft=nested, begun=st.booleans())
def test_a_draft_in_the_thinking_is_never_the_answer(
    opening: str, closing: str, draft: str, begun: bool
) -> None:
    assume(
        not begun or not draft.lstrip().startswith(tuple(tag for tag, _ in THINKING))
    )  # it would repeat the prompt's
    thought = draft if begun else opening + draft  # the prompt has opened it, or the model does
    whole = f"{thought}{closing}<next_state>B</next_state><action>B</action>"
    assert extract_answer(whole, begun) == Answer(extract_answer(whole, begun).thinking, "B")
    assert parse_action(whole, begun)[0] == "B"
    for layout in ("window", "conversation", "chat"):
        assert ActionPrompt(layout=layout).parse(whole, begun)[0] == "B"
    assert read_reply(thought, begun).said == ""  # cut off
    assert extract_answer(thought, begun).next_state is None
    assert parse_action(thought, begun)[0] == ""


@given(draft=nested)
def test_a_closing_tag_alone_means_that_the_prompt_opened_it(draft: str) -> None:
    assert extract_answer(f"{draft}</think><next_state>B</next_state>").next_state == "B"


@given(hostile, st.booleans())
def test_what_was_said_is_read_the_same_again(text: str, begun: bool) -> None:
    thinking, said = read_reply(text, begun)
    assert read_reply(said) == ("", said)
    assert text.endswith(said)
    assert all(line in text for line in thinking.splitlines())
    assert extract_answer(said).next_state == extract_answer(text, begun).next_state


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
        ("<next_state>a</next_state><think>late", "late", None),
        ("<NEXT_STATE>a</NEXT_STATE>", "", None),
        (
            "I guess <next_state>A</next_state> no.</think><next_state>B</next_state>",
            "I guess <next_state>A</next_state> no.",
            "B",
        ),
        ("<think>hm <next_state>A</next_state>", "hm <next_state>A</next_state>", None),
        (
            "<think>a<think>b</think><next_state>A</next_state></think><next_state>B</next_state>",
            "a<think>b</think><next_state>A</next_state>",
            "B",
        ),
        ("<think>a<think>b</think><next_state>A</next_state>", "a<think>b</think><next_state>A</next_state>", None),
        ("<think>a</think>x<think>b</think><next_state>B</next_state>", "a\nb", "B"),
    ],
)  # fmt: skip
def test_cases(text: str, thinking: str, next_state: str | None) -> None:
    assert extract_answer(text) == Answer(thinking, next_state)


def test_a_completion_that_begins_in_thinking_has_no_answer_before_its_end() -> None:
    draft = "Perhaps <next_state>A</next_state>"
    assert extract_answer(draft, in_thinking=True) == Answer(draft, None)
    assert extract_answer(f"{draft}</think><next_state>B</next_state>", in_thinking=True) == Answer(
        draft, "B"
    )


def test_a_completion_may_repeat_the_tag_that_its_prompt_ends_with() -> None:
    assert extract_answer("\n<think>T</think><next_state>B</next_state>", in_thinking=True) == Answer(
        "T", "B"
    )
    assert extract_answer("<think><next_state>A</next_state>", in_thinking=True).next_state is None
    nested = "T <think>U</think><next_state>A</next_state>"  # not repeated: one of the two is still open
    assert extract_answer(nested, in_thinking=True).next_state is None


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<｜Assistant｜><think>", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Think inside <think></think>.", False),
    ],
)
def test_a_prompt_ends_in_thinking_or_not(prompt: str, inside: bool) -> None:
    assert ends_in_thinking(prompt) is inside


@pytest.mark.parametrize(
    ("answer", "prompt", "label"),
    [
        ("<think>T</think>\nX", "assistant\n", "<think>T</think>\nX"),
        ("<think>T</think>\nX", "assistant\n<think>\n", "T</think>\nX"),
        ("<think></think>\nX", "assistant\n<think>\n", "</think>\nX"),
        ("X", "assistant\n<think>\n", "</think>\nX"),
        ("<think></think>\nX", "<|START_THINKING|>", "<|END_THINKING|>\nX"),
        ("<think></think>\nX", "assistant\n<think>\n\n</think>\n\n", "X"),
        ("<think>T</think>\nX", "assistant\n<think>\n\n</think>\n\n", "<think>T</think>\nX"),
    ],
)
def test_a_label_opens_thinking_once(answer: str, prompt: str, label: str) -> None:
    assert after_prompt(answer, prompt) == label
    assert read_reply(label, ends_in_thinking(prompt)).said.strip() == "X"


def test_repeated_open_tags_take_no_time() -> None:
    started = time.monotonic()
    assert extract_answer("<think>" * 2000 + "<next_state>" * 2000).next_state is None
    assert extract_answer("<next_state>" * 2000).next_state is None
    assert time.monotonic() - started < 5
