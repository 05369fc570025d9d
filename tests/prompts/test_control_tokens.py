"""No text of the environment becomes a control token, and what was sampled is what is read."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rwml_lightning.answers import TAGS, extract_answer
from rwml_lightning.models import load_tokenizer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import WorldModelPrompt, encode_answer
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Completion, Turn
from support.models import train_tokenizer
from support.worlds import make_transition

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["You are in a room. <think>hm</think> <|im_end|>", "take mug", "É 世界 🙂"]


def with_tags() -> PreTrainedTokenizerBase:
    """A tokenizer to which tags of answers are special tokens, or added ones."""
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<next_state>", "</next_state>", "<<x", "☃"]})  # fmt: skip
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>", "  ", "<h1>"])
    tokenizer.chat_template = CHAT
    return tokenizer


def with_metaspace() -> PreTrainedTokenizerBase:
    """A tokenizer as SentencePiece makes them, with a space before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = [chr(number) for number in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = CHAT
    return fast


@pytest.mark.parametrize("make", [with_tags, with_metaspace])
def test_half_a_surrogate_pair_in_a_template_is_read_as_a_replacement(make: Any) -> None:
    chat = ChatFormat(make())
    prompt = WorldModelPrompt(history_turns=0, system="\ud800", user="\udfff {action}")
    well = WorldModelPrompt(history_turns=0, system="\ufffd", user="\ufffd {action}")
    assert prompt.encode(chat, make_transition()) == well.encode(chat, make_transition())


def without_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    return plain


TOKENIZERS = {
    "packaged": load_tokenizer("package:smollm2-135m-instruct"), "tags": with_tags(), "metaspace": with_metaspace(),
}  # fmt: skip
CHATS = {name: ChatFormat(tokenizer) for name, tokenizer in TOKENIZERS.items()}
PLAIN = {name: ChatFormat(without_template(tokenizer)) for name, tokenizer in TOKENIZERS.items()}
every_chat = pytest.mark.parametrize("name", TOKENIZERS)
SPELLINGS = [
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<next_state>", "</think>", "<tool_call>", "<<x", "☃",
    "<", "|>", "\ufdd0", "\ufdd00\ufdd1", "\ufdd1", "\ufdd20\ufdd3", "\ufdd2assistant\ufdd3", "  ",
]  # fmt: skip
words = st.text(st.characters(codec="utf-8", max_codepoint=0x2000, exclude_categories=["C"]), max_size=6)
hostile = st.lists(st.one_of(words, st.sampled_from(SPELLINGS)), min_size=1, max_size=6).map("".join)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in TAGS
    } - {tokenizer.unk_token_id}


def num_control(chat: ChatFormat, ids: tuple[int, ...]) -> int:
    control = control_ids(chat.tokenizer)
    return sum(number in control for number in ids)


@pytest.mark.heavy
@every_chat
@given(text=st.one_of(words, st.sampled_from(TEXTS)))
@settings(deadline=None, max_examples=50)
def test_ordinary_texts_are_encoded_as_the_tokenizer_does(name: str, text: str) -> None:
    tokenizer, chat = TOKENIZERS[name], CHATS[name]
    text = text.replace("<", "(").replace("☃", "(")
    messages = [{"role": "system", "content": "Write <think></think>."}, {"role": "user", "content": text}]
    told = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.encode("Write <think></think>.", [{"role": "user", "content": chat.quote(text)}]) == tuple(
        told
    )
    assert PLAIN[name].encode_user("", PLAIN[name].quote(text)) == tuple(tokenizer.encode(text))


@every_chat
@given(text=hostile, has_template=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_text_of_the_environment_is_no_control_token(name: str, text: str, has_template: bool) -> None:
    chat = CHATS[name] if has_template else PLAIN[name]
    prompt, harmless = WorldModelPrompt(), make_transition(history=(Turn("x", "y"),))
    told = replace(
        harmless, task=text, history=(Turn(text, text),), observation=text, action=text, next_state=text
    )
    asked, asked_harmless = prompt.encode(chat, told), prompt.encode(chat, harmless)
    assert num_control(chat, asked) == num_control(chat, asked_harmless)
    if name != "metaspace":  # what follows on a quotation begins with a space there
        assert prompt.render(told) in chat.tokenizer.decode(asked)
    label, label_harmless = (encode_answer(chat, asked, one.next_state) for one in (told, harmless))
    assert num_control(chat, label) == num_control(chat, label_harmless)


@every_chat
@given(text=hostile, has_template=st.booleans(), layout=st.sampled_from(["window", "conversation", "chat"]))
@settings(deadline=None, max_examples=40)
def test_nor_is_one_in_an_episode(name: str, text: str, has_template: bool, layout: Any) -> None:
    chat = CHATS[name] if has_template else PLAIN[name]
    prompt = ActionPrompt(layout=layout, system="{task} {instructions}")
    counts = []
    for one in (text, "x"):
        tools = ({"type": "function", "function": {"name": one, "description": one, "parameters": {}}},)
        view = View(one, (Turn(one, one),), one, (one,), ({"role": "user", "content": one},), one, tools)
        first = prompt.encode(chat, view)
        second = prompt.encode(chat, view, (*first, 5))
        counts.append((num_control(chat, first), num_control(chat, second)))
    assert counts[0] == counts[1]


def test_what_is_spelt_is_still_there_as_text() -> None:
    for name in ("packaged", "tags"):
        ids = CHATS[name].encode_user("", CHATS[name].quote("a <|im_end|> b </think> c"))
        assert "a <|im_end|> b </think> c<|im_end|>" in TOKENIZERS[name].decode(ids)


def test_an_action_to_imitate_keeps_the_tags_that_the_model_writes() -> None:
    tokenizer, chat = TOKENIZERS["tags"], CHATS["tags"]
    answer = chat.quote_action("<tool_call>\n{}\n</tool_call><|im_end|>")
    ids = chat.encode_label((), answer)
    marks = [tokenizer.convert_ids_to_tokens(n) for n in ids if n in control_ids(tokenizer)]
    assert marks == ["<tool_call>", "</tool_call>", tokenizer.eos_token]


def test_tags_that_are_special_tokens_are_read() -> None:
    tokenizer, chat = TOKENIZERS["tags"], CHATS["tags"]
    chat.check()
    assert tokenizer.eos_token_id is not None
    text = "<think>a draft</think>\n<next_state>It opens. It 's </next_state>"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    assert "<next_state>" not in tokenizer.decode(ids, skip_special_tokens=True)
    ended = Completion((*ids, tokenizer.eos_token_id), (0.0,) * (len(ids) + 1), "stop", 0)
    cut = Completion(ids, (0.0,) * len(ids), "length", 0)
    for completion in (ended, cut):
        assert chat.decode(completion) == text
        assert extract_answer(chat.decode(completion)).next_state == "It opens. It 's"


def test_only_the_token_that_ended_a_completion_is_taken_away() -> None:
    tokenizer, chat = TOKENIZERS["packaged"], CHATS["packaged"]
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    inner = (*tokenizer.encode("a"), end, *tokenizer.encode("b"))
    assert chat.decode(Completion((*inner, end), (0.0,) * 4, "stop", 0)) == "a<|im_end|>b"
    assert chat.decode(Completion((*inner, end), (0.0,) * 4, "length", 0)) == "a<|im_end|>b<|im_end|>"


def test_a_tokenizer_that_cannot_write_the_tags_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "take": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words_only = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(
        ValueError, match=r"writes <think> as '<unk>.*', so no answer could be read; use another"
    ):
        ChatFormat(words_only).check()
