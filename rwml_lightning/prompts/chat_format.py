"""Conversion between texts and the policy's tokens, for prompts, labels and completions of every stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rwml_lightning.answers import TAGS, after_prompt, ends_in_thinking
from rwml_lightning.prompts.chat_template import ChatTemplate, Message
from rwml_lightning.prompts.control_tokens import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rwml_lightning.schema import Completion

_TOOLS = """\
You can call these tools:
{schemas}
To call one, answer with nothing but
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>"""
_TAIL_TOKENS = 32  # more than the longest tag has when each letter is a token


class ChatFormat:
    """Encodes and decodes text with a tokenizer, its chat template and the end tokens of a completion.

    Args:
        tokenizer: Tokenizer of the policy. Without a chat template, prompts are plain text.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``.
        end_token_ids: Tokens at which the generator stops; empty for only the tokenizer's end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.end_token_ids = tuple(end_token_ids) or (tokenizer.eos_token_id,)
        self._control = ControlTokens(tokenizer)
        has_template = tokenizer.chat_template is not None
        self._template = ChatTemplate(tokenizer, self.template_kwargs) if has_template else None

    def check(self) -> None:
        """Raise a ValueError if the tokenizer changes the answer tags or the chat template has no generation prompt."""
        for tag in TAGS:
            written = self._decode(self.tokenizer.encode(tag, add_special_tokens=False))
            if tag not in written:
                raise ValueError(
                    f"the tokenizer of {self.tokenizer.name_or_path} writes {tag} as {written!r}, so no answer could be read; "
                    "use another model"
                )
        if self._template is not None:
            self._template.check()

    def quote(self, text: str) -> str:
        """Quote a text from the environment for a message, an answer or a schema, so that it cannot spell a control token."""
        return self._control.quote(text)

    def quote_action(self, text: str) -> str:
        """Quote an action to imitate, like :meth:`quote`, but keep the answer tags, which the model itself writes."""
        return self._control.quote(text, keep=TAGS)

    def encode(
        self, system: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt, up to the start of the completion; plain text without a chat template.

        Args:
            system: System message; empty for none.
            messages: Chat messages after the system message.
            tools: Schemas of the environment's tools. If the template does not support tools, the system message lists them.

        Raises:
            ValueError: The chat template does not show all messages.
        """
        if self._template is None:
            system = _with_tools(system, self._as_texts(tools))
            text = "\n\n".join(message["content"] for message in messages)
            plain = f"{system}\n\n{text}\n" if system else text
            return tuple(self._control.encode(plain, add_special_tokens=True))
        chat = _conversation(system, messages)
        if tools and not self._template.shows_tools([message["role"] for message in chat]):
            chat = _conversation(_with_tools(system, self._as_texts(tools)), messages)
            tools = ()
        return tuple(self._control.encode(self._template.render(chat, self._control.quote_all(tools))))

    def encode_user(self, system: str, user: str) -> tuple[int, ...]:
        """Return the token ids of a prompt with a system message and one user message; see :meth:`encode`."""
        return self.encode(system, [{"role": "user", "content": user}])

    def encode_reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens between two completions: the end of the assistant's turn, the messages, the next start.

        Raises:
            ValueError: The chat template does not show an assistant's message unchanged, so no message can follow it.
        """
        if self._template is None:
            text = "\n\n".join(message["content"] for message in messages)
            return tuple(self._control.encode(f"\n\n{text}\n"))
        return tuple(self._control.encode(self._template.render_reply(messages)))

    def encode_label(self, prompt_ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """Return the token ids of an answer to imitate after a prompt, including its end token.

        Raises:
            ValueError: The tokenizer has no end token.
        """
        ids = self._control.encode(after_prompt(answer, self._tail(prompt_ids)))
        return (*ids, self.end_id)

    @cached_property
    def end_id(self) -> int:
        """Token that ends the assistant's turn in the chat template if the generator stops at it, else the end token."""
        ends: Sequence[int] = ()
        if self._template is not None:
            ends = [
                n for n in self.encode_reply([{"role": "user", "content": "?"}]) if n in self._control.ids
            ]
        end = ends[0] if ends and ends[0] in self.end_token_ids else self.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "the tokenizer has no end token (eos_token), so the model could not learn where to stop"
            )
        return int(end)

    def decode(self, completion: Completion) -> str:
        """Decode a completion, with its special tokens and without its end token."""
        ids = completion.token_ids
        return self._decode(ids[:-1] if completion.finish_reason == "stop" else ids)

    def in_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether a prompt ends inside thinking, so that its completion begins inside thinking."""
        return ends_in_thinking(self._tail(prompt_ids))

    def _as_texts(self, tools: Sequence[Mapping[str, Any]]) -> list[str]:
        return [self.quote(json.dumps(tool)) for tool in tools]

    def _tail(self, prompt_ids: Sequence[int]) -> str:
        return self._decode(prompt_ids[-_TAIL_TOKENS:])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def fingerprint(chat: ChatFormat) -> str:
    """Return a hash of all that determines the token ids: vocabulary, chat template and its arguments."""
    tokenizer = chat.tokenizer
    text = json.dumps(
        [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, dict(chat.template_kwargs)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _conversation(system: str, messages: Sequence[Message]) -> list[Message]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _with_tools(system: str, schemas: Sequence[str]) -> str:
    """Return the system message with the tool schemas, for a chat template that does not support tools."""
    if not schemas:
        return system
    return f"{system}\n\n{_TOOLS.format(schemas=chr(10).join(schemas))}".strip()
