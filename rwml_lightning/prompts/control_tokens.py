"""Texts of the environment as token ids: one that spells a control token of the tokenizer stays a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rwml_lightning.answers import TAGS
from rwml_lightning.printable import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode promises that these are no characters, so no text has a use for them; one that holds them is quoted too.
_OPEN, _CLOSE, MARK_OPEN, MARK_CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_QUOTED = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class ControlTokens:
    """Quotes what spells a control token, and encodes texts that hold such quotations.

    Control tokens are the tokenizer's special tokens, and of its other added tokens those that its chat template writes or that
    an answer is read by (:data:`rwml_lightning.answers.TAGS`). Texts that spell none are encoded as the tokenizer does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def ids(self) -> frozenset[int]:
        """Ids of all control tokens."""
        template = str(self.tokenizer.chat_template)
        return frozenset(self.tokenizer.all_special_ids) | {
            number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or token.content in template or token.content in TAGS)
        }

    @cached_property
    def _spellings(self) -> list[str]:
        tokens = {str(self.tokenizer.convert_ids_to_tokens(number)) for number in self.ids}
        return [_OPEN, MARK_OPEN, *sorted(tokens, key=lambda token: (-len(token), token))]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {spelling: number for number, spelling in enumerate(self._spellings)}

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._spellings)))

    def quote(self, text: str, keep: tuple[str, ...] = ()) -> str:
        """The text with each spelling of a control token in quotation, except those to ``keep``."""

        def quoted(found: re.Match[str]) -> str:
            spelling = found.group()
            return spelling if spelling in keep else f"{_OPEN}{self._numbers[spelling]}{_CLOSE}"

        return self._spelt.sub(quoted, text)

    def quote_all(self, value: Any) -> Any:
        """A JSON value with all its texts quoted."""
        if isinstance(value, str):
            return self.quote(value)
        if isinstance(value, Mapping):
            return {self.quote(str(name)): self.quote_all(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.quote_all(item) for item in value]
        return value

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text with quotations.

        Args:
            text: What stands outside quotations may hold control tokens.
            add_special_tokens: Whether the tokenizer adds its own, such as one that begins a text.
        """
        first, *rest = _QUOTED.split(well_formed(text))
        ids = list(self.tokenizer.encode(first, add_special_tokens=add_special_tokens))
        for number, piece in zip(rest[::2], rest[1::2], strict=True):
            ids += self._literally(self._spellings[int(number)])
            ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _literally(self, spelling: str) -> list[int]:
        """Its first character and the rest, each on its own, so that no tokenizer finds the control token."""
        first, rest = spelling[:1], self.quote(spelling[1:])
        ids = self.tokenizer.encode(first, add_special_tokens=False, split_special_tokens=True)
        return list(ids) + (self.encode(rest) if rest else [])
