"""Chat templates as they are in the world: each shows all that a run says, or is refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.resources import files

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.models import load_tokenizer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.chat_template import Message
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.view import View

_BY_ROLE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
_GENERATION = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_CHATML = _BY_ROLE + _GENERATION
_ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
) + _GENERATION
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
_DROPS_SYSTEM = _CHATML.replace("in messages", "in messages if m.role != 'system'")
_DROPS_TOOLS = _CHATML.replace("in messages", "in messages if m.role != 'tool'")
_PARTS = _CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
_OPENS = _CHATML.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
_DATED = "<|system|>Today is {{ strftime_now('%d %B %Y') }}<|end|>" + _CHATML

TOOLS = ({"type": "function", "function": {
    "name": "look_up", "description": "Looks up.",
    "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "a key"}}},
}},)  # fmt: skip
SHIPPED = sorted(
    file.name for file in files("trl").joinpath("chat_templates").iterdir() if file.name.endswith(".jinja")
)


@pytest.fixture(scope="module")
def packaged() -> PreTrainedTokenizerBase:
    return load_tokenizer("package:smollm2-135m-instruct")


def chat_with(tokenizer: PreTrainedTokenizerBase, template: str, **arguments: object) -> ChatFormat:
    other = copy.copy(tokenizer)
    other.chat_template = template
    return ChatFormat(other, arguments)


def says(*roles: str) -> list[Message]:
    """Messages with distinct texts."""
    return [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]


def shown(chat: ChatFormat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def test_a_template_that_takes_all_is_used_as_it_is(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _CHATML)
    for roles in (("user",), ("assistant", "user"), ("user", "assistant", "tool", "tool", "user")):
        messages = says(*roles)
        told = chat.tokenizer.apply_chat_template(
            [{"role": "system", "content": "sys"}, *messages], add_generation_prompt=True, return_dict=False
        )
        assert chat.encode("sys", messages) == tuple(told)


@pytest.mark.parametrize(
    "template", [_NO_SYSTEM + _CHATML, _DROPS_SYSTEM, _NO_SYSTEM + _ALTERNATING], ids=["refuses", "drops", "alternates"]
)  # fmt: skip
def test_a_system_message_without_a_place_begins_the_users(
    packaged: PreTrainedTokenizerBase, template: str
) -> None:
    chat = chat_with(packaged, template)
    assert shown(chat, chat.encode_user("sys", "ask")) == "<|user|>sys\n\nask<|end|><|assistant|>"


def test_where_the_assistant_may_not_begin_the_system_message_does(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _ALTERNATING)
    text = shown(chat, chat.encode("sys", says("assistant", "user")))
    assert text == "<|user|>sys<|end|><|assistant|>text 0<|end|><|user|>text 1<|end|><|assistant|>"
    with pytest.raises(
        ValueError, match=r"assistant, user: it refuses it: Roles must alternate; .*prompt\.system"
    ):
        chat.encode("", says("assistant", "user"))


@pytest.mark.parametrize("template", [_DROPS_TOOLS, _ALTERNATING], ids=["drops", "alternates"])
def test_replies_of_tools_without_a_place_are_the_users(
    packaged: PreTrainedTokenizerBase, template: str
) -> None:
    chat = chat_with(packaged, template)
    reply = shown(chat, chat.encode_reply(says("tool", "tool")))
    assert reply == (
        "<|end|><|user|><tool_response>\ntext 0\n</tool_response>\n\n<tool_response>\ntext 1\n</tool_response><|end|>"
        "<|assistant|>"
    )


def test_content_as_parts_where_the_template_wants_them(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _PARTS)
    assert (
        shown(chat, chat.encode_user("sys", "ask")) == "<|system|>sys<|end|><|user|>ask<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("<|assistant|>", "does not show the message of role 'user' once"),
        (_CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"), "of role 'user' once"),
        (_CHATML.replace("{{ m.content }}", "{{ m.content[:2] }}"), "of role 'user' once"),
        ("{{ raise_exception('Not\ntoday') }}", "refuses it: Not;"),
        ("{{ 1 + messages }}", "refuses it: unsupported operand"),
        ("{% for m in messages %}", "refuses it: Unexpected end of template"),
        (_BY_ROLE, "has no generation prompt"),
    ],
)
def test_what_a_template_loses_is_said_in_one_line(
    packaged: PreTrainedTokenizerBase, template: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        chat_with(packaged, template).check()
    assert "\n" not in str(caught.value)
    assert "the chat template of" in str(caught.value)


def test_tools_do_not_make_the_assistants_words_the_users(packaged: PreTrainedTokenizerBase) -> None:
    llama = (
        files("trl").joinpath("chat_templates", "llama3_1.jinja").read_text()
    )  # puts tools into the first user message
    chat = chat_with(packaged, llama)
    text = shown(chat, chat.encode("the rules", says("assistant", "user"), TOOLS))
    assert "<|start_header_id|>assistant<|end_header_id|>\n\ntext 0<|eot_id|>" in text
    assert "look_up" in text


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_of_many_families(packaged: PreTrainedTokenizerBase, name: str) -> None:
    chat = chat_with(packaged, files("trl").joinpath("chat_templates", name).read_text())
    chat.check()
    WorldModelPrompt().check(chat)
    for layout in ("window", "conversation", "chat"):
        ActionPrompt(layout=layout).check(chat)
    for roles in (("user",), ("assistant", "user"), ("user", "assistant", "tool", "tool", "user")):
        ids = chat.encode("the rules", says(*roles), TOOLS)
        text = shown(chat, ids)
        places = [text.index(f"text {number}") for number in range(len(roles))]
        assert places == sorted(places)
        assert [text.count(f"text {number}") for number in range(len(roles))] == [1] * len(roles)
        assert text.count("the rules") == 1
        assert "look_up" in text
        assert chat.in_thinking(ids) == text.rstrip().endswith("<think>")
    label = chat.encode_label(ids, "<think></think>\nyes")
    assert (text + shown(chat, label[:-1])).count("<think>") - text.count("</think>") <= 1
    assert shown(chat, label[:-1]).endswith("yes")


def test_a_label_does_not_open_thinking_again(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _OPENS)
    ids = chat.encode_user("", "ask")
    assert chat.in_thinking(ids)
    assert shown(chat, chat.encode_label(ids, "<think>hm</think>\nyes")[:-1]) == "hm</think>\nyes"
    chat = chat_with(packaged, _CHATML)
    assert not chat.in_thinking(chat.encode_user("", "the sign reads <think>"))


def test_a_label_ends_with_what_ends_the_turn_and_stops_the_generator(
    packaged: PreTrainedTokenizerBase,
) -> None:
    turn_end, text_end = (packaged.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    other = copy.deepcopy(packaged)
    other.eos_token = "<|endoftext|>"
    assert ChatFormat(other, end_token_ids=(text_end, turn_end)).end_id == turn_end
    assert (
        ChatFormat(other, end_token_ids=(text_end,)).end_id == text_end
    )  # the generator would not stop at the other
    assert ChatFormat(packaged).end_id == turn_end


def test_a_prompt_is_the_same_on_every_day(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _DATED)
    assert shown(chat, chat.encode_user("", "ask")).startswith(
        "<|system|>Today is 26 July 2024<|end|><|user|>"
    )
    llama = files("trl").joinpath("chat_templates", "llama3_2.jinja").read_text()
    assert "Today Date: 26 Jul 2024" in shown(chat, chat_with(packaged, llama).encode_user("", "ask"))
    dated = chat_with(packaged, llama, date_string="1 Jan 2030")
    assert "Today Date: 1 Jan 2030" in shown(chat, dated.encode_user("", "ask"))


def test_arguments_reach_the_template_and_unknown_ones_are_refused(packaged: PreTrainedTokenizerBase) -> None:
    qwen = files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()
    chat = chat_with(packaged, qwen)
    assert shown(chat, chat.encode_user("", "ask")).endswith("assistant\n")
    quiet = chat_with(packaged, qwen, enable_thinking=False)
    assert shown(quiet, quiet.encode_user("", "ask")).endswith("assistant\n<think>\n\n</think>\n\n")
    for name in ("enable_thinkng", "tools", "add_generation_prompt", "chat_template"):
        with pytest.raises(ValueError, match=f"data.chat_template_kwargs names '{name}'"):
            chat_with(packaged, qwen, **{name: False})


def test_a_view_in_a_chat_is_shown_whole(packaged: PreTrainedTokenizerBase) -> None:
    chat = chat_with(packaged, _ALTERNATING)
    view = View("tidy", messages=tuple(says("assistant", "user")), instructions="Be kind.")
    prompt = ActionPrompt(layout="chat", system="{instructions}")
    ids = prompt.encode(chat, view)
    following = prompt.encode(chat, View("tidy", messages=tuple(says("tool"))), (*ids, 50, chat.end_id))
    assert following[: len(ids) + 2] == (*ids, 50, chat.end_id)
    assert "<tool_response>\ntext 0\n</tool_response>" in shown(chat, following[len(ids) :])
