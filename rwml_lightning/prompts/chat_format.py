"""How texts become a policy's tokens and its tokens texts: one place for prompts, labels and completions of both stages."""

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
_TAIL_TOKENS = 32  # more than the longest tag has, letter by letter


class ChatFormat:
    """A tokenizer, its chat template with that template's arguments, and what ends a completion.

    Args:
        tokenizer: The policy's; without a chat template prompts are plain text.
        template_kwargs: Arguments of the chat template, such as ``enable_thinking``.
        end_token_ids: Tokens at which the generator stops; empty for the tokenizer's end token alone.
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
        """Raise a ValueError, before anything is done, where answers could not be read or prompts not be written."""
        for tag in TAGS:
            written = self._decode(self.tokenizer.encode(tag, add_special_tokens=False))
            if tag not in written:
                raise ValueError(
                    f"the tokenizer of {self.tokenizer.name_or_path} writes {tag} as {written!r}, so no answer could be read; "
                    "take another model"
                )
        if self._template is not None:
            self._template.check()

    def quote(self, text: str) -> str:
        """A text of the environment as it may stand in a message, an answer or a schema: it can spell no control token."""
        return self._control.quote(text)

    def quote_action(self, text: str) -> str:
        """An action to imitate; like :meth:`quote`, but the tags that an answer is read by are the model's own to write."""
        return self._control.quote(text, keep=TAGS)

    def encode(
        self, system: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Token ids up to where the model begins to write; plain text for a tokenizer without a chat template.

        Args:
            system: System message; empty for none.
            messages: Chat messages after it.
            tools: Schemas of tools as the environment gives them; a template without a place for them gets them as text in the
                system message.

        Raises:
            ValueError: The chat template does not show all of it.
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
        """Token ids of a prompt that is one message of the user, after the system's; see :meth:`encode`."""
        return self.encode(system, [{"role": "user", "content": user}])

    def encode_reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens between the end of what the policy wrote and where it writes next: its turn's end, what it is answered.

        Raises:
            ValueError: The chat template does not show an assistant's message as it is, so that none can follow on it.
        """
        if self._template is None:
            text = "\n\n".join(message["content"] for message in messages)
            return tuple(self._control.encode(f"\n\n{text}\n"))
        return tuple(self._control.encode(self._template.render_reply(messages)))

    def encode_label(self, prompt_ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """An answer to imitate after a prompt, and the token that ends it.

        Raises:
            ValueError: There is no such token.
        """
        ids = self._control.encode(after_prompt(answer, self._tail(prompt_ids)))
        return (*ids, self.end_id)

    @cached_property
    def end_id(self) -> int:
        """What ends an assistant's turn in the chat template, where the generator stops at it, else the end token."""
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
        """What was sampled, special tokens included, without the token that ended it."""
        ids = completion.token_ids
        return self._decode(ids[:-1] if completion.finish_reason == "stop" else ids)

    def in_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside thinking, so that its completion begins there."""
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
    """What token ids of prompts and answers depend on: vocabulary, chat template and its arguments."""
    tokenizer = chat.tokenizer
    text = json.dumps(
        [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, dict(chat.template_kwargs)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _conversation(system: str, messages: Sequence[Message]) -> list[Message]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _with_tools(system: str, schemas: Sequence[str]) -> str:
    """The system message with what a chat template without tools leaves out."""
    if not schemas:
        return system
    return f"{system}\n\n{_TOOLS.format(schemas=chr(10).join(schemas))}".strip()
