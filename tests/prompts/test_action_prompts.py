"""What the policy reads: new prompts with a window of turns, or one conversation of the very tokens that were sampled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rwml_lightning.models import load_tokenizer
from rwml_lightning.prompts.action import ActionPrompt, parse_action
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Turn

CONVERSATION = ActionPrompt(layout="conversation")


def see(task: str, observation: str, *admissible: str) -> View:
    return View(task, (), observation, admissible)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("package:smollm2-135m-instruct")


def test_a_conversation_is_what_the_chat_template_makes_of_its_messages(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    answers = ["<think></think>\n<action>go to desk 1</action>", "<action>take mug 1</action>"]
    observations = ["In a room.", "At the desk 1.", "You pick up the mug 1."]
    messages = [{"role": "system", "content": CONVERSATION.system}]
    ids: tuple[int, ...] | None = None
    for turn, observation in enumerate(observations):
        ids = CONVERSATION.encode(ChatFormat(tokenizer), see("tidy up", observation, "look", "wait"), ids)
        first = "Task: tidy up\n" if turn == 0 else ""
        text = f"{first}Current observation: {observation}\nAdmissible actions: look, wait"
        messages.append({"role": "user", "content": text})
        assert ids == tuple(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        )
        if turn < len(answers):
            ids += ChatFormat(tokenizer).encode_label(ids, answers[turn])
            messages.append({"role": "assistant", "content": answers[turn]})


@given(answer=st.lists(st.integers(3, 400), min_size=1, max_size=6), cut=st.booleans(), observation=st.text())
@settings(max_examples=50, deadline=None)
def test_sampled_tokens_stay_as_they_are(
    tokenizer: PreTrainedTokenizerBase, answer: list[int], cut: bool, observation: str
) -> None:
    assert tokenizer.eos_token_id is not None
    prompt = CONVERSATION.encode(ChatFormat(tokenizer), see("t", "o", "a"))
    completion = tuple(answer) if cut else (*answer, tokenizer.eos_token_id)
    following = CONVERSATION.encode(ChatFormat(tokenizer), see("t", observation, "a"), prompt + completion)
    assert following[: len(prompt) + len(answer)] == prompt + tuple(answer)
    assert following[len(prompt) + len(answer)] == tokenizer.eos_token_id  # once, whoever wrote it
    assert following[len(prompt) + len(answer) + 1] != tokenizer.eos_token_id


def test_a_window_shows_the_last_turns_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = tuple(Turn(f"state {n}", f"act {n}") for n in range(4))
    prompt = ActionPrompt(history_turns=2)
    text = tokenizer.decode(
        list(prompt.encode(ChatFormat(tokenizer), View("t", turns, "now", ("a",)), so_far=(1, 2)))
    )
    assert "state 1" not in text
    assert text.index("state 2") < text.index("act 3") < text.index("Current observation: now")


def test_without_a_chat_template_a_conversation_is_plain_text(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    first = CONVERSATION.encode(ChatFormat(tiny_tokenizer), see("t", "o"))
    second = CONVERSATION.encode(ChatFormat(tiny_tokenizer), see("t", "p", "a"), (*first, 70, 71))
    assert tiny_tokenizer.decode(list(second[len(first) + 2 :])) == (
        "\n\nCurrent observation: p\nAdmissible actions: a\n"
    )


def test_a_template_that_hides_what_the_assistant_wrote_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(ValueError, match=r"set prompt\.layout to 'window'"):
        ChatFormat(tokenizer).encode_reply([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"reply": "{history}"}, r"prompt\.reply contains the unknown field \{history\}"),
        ({"answer": "{act}"}, r"prompt\.answer contains the unknown field \{act\}"),
        ({"system": "{rules}"}, r"prompt\.system contains the unknown field \{rules\}"),
    ],
)
def test_unknown_fields_are_named(field: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionPrompt(**field)


@given(action=st.text(st.characters(codec="ascii", exclude_characters="<>"), max_size=60))
def test_labels_are_read_back(action: str) -> None:
    wanted = " ".join(action.split())
    assert parse_action(ActionPrompt().answer.format(action=wanted, thinking="")) == (wanted, "")


TOOLS = ({"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}},)
CHAT = ActionPrompt(layout="chat", system="{instructions}\n{task}", user="Begin.", max_observation_chars=40)


def hear(*messages: tuple[str, str]) -> View:
    said = tuple({"role": role, "content": content} for role, content in messages)
    return View("the task", messages=said, instructions="Be kind.", tools=TOOLS)


def test_a_chat_is_the_environments_own_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    first = CHAT.encode(ChatFormat(tokenizer), hear(("user", "Hello?")))
    text = tokenizer.decode(list(first))
    system, _, rest = text.partition("<|im_end|>")
    assert system.startswith("<|im_start|>system\nBe kind.\nthe task\n\nYou can call these tools:\n")
    assert '"name": "look_up"' in system  # this template has no place for tools
    assert '{"name": NAME, "arguments": {...}}' in system
    assert rest == "\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    answer = ChatFormat(tokenizer).encode_label(first, "Hi.")
    second = CHAT.encode(ChatFormat(tokenizer), hear(("tool", "x" * 60), ("user", "And?")), first + answer)
    assert second[: len(first) + len(answer)] == first + answer
    assert tokenizer.decode(list(second[len(first) + len(answer) :])) == (
        f"\n<|im_start|>tool\n{'x' * 26} ... {'x' * 14}<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_chat_that_nobody_began_begins_with_the_user_template(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.decode(list(CHAT.encode(ChatFormat(tokenizer), hear())))
    assert text.endswith("<|im_start|>user\nBegin.<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_with_tools_gets_their_schemas(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = tokenizer.decode(list(CHAT.encode(ChatFormat(tokenizer), hear(("user", "Hello?")))))
    assert text == "[look_up]system: Be kind.\nthe task\nuser: Hello?\n"


@pytest.mark.parametrize(
    ("text", "action", "thinking"),
    [
        ("<think>hm</think>\n\nTwo lines\nof text. ", "Two lines\nof text.", "hm"),
        ("x" * 900, "x" * 900, ""),
        ("<think>hm</think>", "", "hm"),
        ("<think>should I <tool_call>{}</tool_call>", "", "should I <tool_call>{}</tool_call>"),
        ("<think>hm</think>\n<action>Two lines\nof text.</action>", "Two lines\nof text.", "hm"),
    ],
)
def test_an_answer_in_a_chat_is_the_action_as_it_stands(text: str, action: str, thinking: str) -> None:
    assert CHAT.parse(text) == (action, thinking)
    assert ActionPrompt().parse("<action>go</action>") == ("go", "")
    assert ActionPrompt().parse("<think>or <action>go</action>") == ("", "or <action>go</action>")
