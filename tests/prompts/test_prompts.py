"""Prompts show what an agent may see, and never what is to be predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rwml_lightning.answers import extract_answer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import WorldModelPrompt, encode_answer, shorten
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Turn
from support.worlds import make_transition

HISTORY = tuple(Turn(f"saw {n}", f"did {n}", thinking=f"thought {n}") for n in range(4))
CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def test_the_user_message_in_full() -> None:
    prompt = WorldModelPrompt(history_turns=2)
    assert prompt.render(make_transition(1, history=HISTORY)) == (
        "Task: tidy up\n"
        "Past observation: saw 2\nPast action: did 2\n"
        "Past observation: saw 3\nPast action: did 3\n"
        "Current observation: You are in room 1.\n"
        "Potential action: go to door 1"
    )
    alone = WorldModelPrompt(history_turns=0).render(make_transition(1, history=HISTORY))
    assert alone == "Task: tidy up\nCurrent observation: You are in room 1.\nPotential action: go to door 1"


@given(st.text(min_size=1, max_size=20))
def test_the_prompt_does_not_depend_on_the_next_state(next_state: str) -> None:
    prompt = WorldModelPrompt()
    transition = make_transition(1, history=HISTORY)
    assert prompt.render(replace(transition, next_state=next_state)) == prompt.render(transition)


@given(st.text(alphabet="{}[]!:ab .", max_size=20))
def test_braces_in_texts_are_text(text: str) -> None:
    prompt = WorldModelPrompt(user="{observation}|{action}")
    assert prompt.render(make_transition(observation=text, action=text)) == f"{text}|{text}"


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (
            "{acton}",
            r"data.predictions.prompt.user contains the unknown field \{acton\}; use only \{action\}, \{history\}, \{observation\}, \{task\}",
        ),
        ("{next_state}", r"contains the unknown field \{next_state\}"),
        ("{0} {}", r"contains the unknown field \{\}"),
        ("{action.__class__}", r"contains the unknown field \{action.__class__\}"),
        (
            "{action",
            r"data.predictions.prompt.user is not a valid template: .*; write \{\{ and \}\} for braces",
        ),
        ("{action} }", r"data.predictions.prompt.user is not a valid template"),
    ],
)
def test_a_template_with_other_fields_is_refused(user: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelPrompt(user=user)


def test_with_and_without_a_chat_template(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert tiny_tokenizer.chat_template is None
    plain = ChatFormat(tiny_tokenizer)
    assert tiny_tokenizer.decode(plain.encode_user("sys", "user")) == "sys\n\nuser\n"
    assert tiny_tokenizer.decode(plain.encode_user("", "user")) == "user"
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    try:
        chat = ChatFormat(tiny_tokenizer)
        assert tiny_tokenizer.decode(chat.encode_user("sys", "user")) == "[system]sys[user]user[assistant]"
        assert tiny_tokenizer.decode(chat.encode_user("", "user")) == "[user]user[assistant]"
    finally:
        tiny_tokenizer.chat_template = None


def test_the_label_is_an_answer_and_an_end(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_answer(ChatFormat(tiny_tokenizer), (), "It moves.")
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert extract_answer(tiny_tokenizer.decode(ids, skip_special_tokens=True)) == ("", "It moves.")


def test_action_prompts_list_what_is_admissible(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ActionPrompt(history_turns=1).encode(
        ChatFormat(tiny_tokenizer), View("win", HISTORY, "here", ("go", "stay"))
    )
    text = tiny_tokenizer.decode(ids)
    assert text.endswith(
        "Task: win\nPast observation: saw 3\nPast action: did 3\nCurrent observation: here\n"
        "Admissible actions: go, stay\n"
    )
    assert "thought" not in text
    with pytest.raises(ValueError, match=r"contains the unknown field \{action\}"):
        ActionPrompt(user="{action}")


@given(st.text(max_size=60), st.integers(1, 40))
def test_long_texts_are_cut_in_the_middle(text: str, most: int) -> None:
    short = shorten(text, most)
    if len(text) <= most:
        assert short == text
    else:
        assert len(short) == most + len(" ... ")
        assert text.startswith(short[: most * 2 // 3])
        assert text.endswith(short[len(short) - (most - most * 2 // 3) :])
