"""The policy for rollouts: its generator, its chat format and its context length."""

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
    """Client of the policy, with which rollouts generate completions.

    Args:
        generator: Generator of completions.
        chat: Chat format of the policy.
        context: Maximum number of tokens of a prompt and its completion together; ``None`` for no limit.
    """

    generator: Generator
    chat: ChatFormat
    context: int | None = None

    def fits(self, num_tokens: int) -> bool:
        """Return whether this number of tokens fits the context."""
        return self.context is None or num_tokens <= self.context

    @classmethod
    def of(
        cls, module: PolicyModule, generator: Generator, template_kwargs: Mapping[str, Any]
    ) -> PolicyClient:
        """Create a client of a module's policy.

        Args:
            module: Module of the policy. Only its tokenizer is loaded.
            generator: Generator of completions.
            template_kwargs: Arguments of the chat template.

        Raises:
            ValueError: The tokenizer or its chat template cannot be used; see :meth:`ChatFormat.check`.
        """
        ends = getattr(generator, "end_token_ids", None) or end_token_ids(module.model)
        chat = ChatFormat(module.tokenizer, template_kwargs, ends)
        chat.check()
        limits = (generator.max_model_len, context_tokens(module.model))
        return cls(generator, chat, min((limit for limit in limits if limit is not None), default=None))
