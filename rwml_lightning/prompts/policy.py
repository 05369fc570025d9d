"""The policy as rollouts see it: what writes, how its texts become tokens, and how many of them fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwml_lightning.generation import Generator
from rwml_lightning.models import context_tokens, end_token_ids
from rwml_lightning.prompts.chat_format import ChatFormat

if TYPE_CHECKING:
    from rwml_lightning.modules.base import PolicyModule


@dataclass(frozen=True)
class PolicyClient:
    """What is needed to ask the policy.

    Args:
        generator: Writes completions.
        chat: Chat format of the policy.
        context: Most tokens of a prompt and its completion together; ``None`` for no limit.
    """

    generator: Generator
    chat: ChatFormat
    context: int | None = None

    def fits(self, num_tokens: int) -> bool:
        """Whether so many tokens fit the context."""
        return self.context is None or num_tokens <= self.context

    @classmethod
    def of(
        cls, module: PolicyModule, generator: Generator, template_kwargs: Mapping[str, Any]
    ) -> PolicyClient:
        """Ask a module's policy through a generator.

        Args:
            module: Module of the policy; nothing but its tokenizer is loaded.
            generator: Writes completions.
            template_kwargs: Arguments of the chat template.

        Raises:
            ValueError: No answer could be read or no token ends a completion; see :meth:`ChatFormat.check`.
        """
        ends = getattr(generator, "end_token_ids", None) or end_token_ids(module.model)
        chat = ChatFormat(module.tokenizer, template_kwargs, ends)
        chat.check()
        limits = (generator.max_model_len, context_tokens(module.model))
        return cls(generator, chat, min((limit for limit in limits if limit is not None), default=None))
