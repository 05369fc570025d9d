"""Token ids of texts from the environment: a text that spells a control token is encoded as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rwml_lightning.answers import TAGS
from rwml_lightning.printable import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode guarantees that these are noncharacters, so no text needs them. A text that contains them is quoted too.
_OPEN, _CLOSE, MARK_OPEN, MARK_CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_QUOTED = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class ControlTokens:
    """Quotes the spellings of control tokens in texts, and encodes texts with such quotations.

    Control tokens are the tokenizer's special tokens, and its other added tokens if the chat template writes them or they are
    answer tags (:data:`rwml_lightning.answers.TAGS`). Texts without their spellings are encoded as the tokenizer encodes them.
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
        """Quote each spelling of a control token in a text, except the spellings in ``keep``."""

        def quoted(found: re.Match[str]) -> str:
            spelling = found.group()
            return spelling if spelling in keep else f"{_OPEN}{self._numbers[spelling]}{_CLOSE}"

        return self._spelt.sub(quoted, text)

    def quote_all(self, value: Any) -> Any:
        """Return a JSON value with all its texts quoted."""
        if isinstance(value, str):
            return self.quote(value)
        if isinstance(value, Mapping):
            return {self.quote(str(name)): self.quote_all(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.quote_all(item) for item in value]
        return value

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text with quotations.

        Args:
            text: Text with quotations. Outside of them, spellings of control tokens become control tokens.
            add_special_tokens: Whether the tokenizer adds special tokens, such as a beginning-of-text token.
        """
        first, *rest = _QUOTED.split(well_formed(text))
        ids = list(self.tokenizer.encode(first, add_special_tokens=add_special_tokens))
        for number, piece in zip(rest[::2], rest[1::2], strict=True):
            ids += self._literally(self._spellings[int(number)])
            ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _literally(self, spelling: str) -> list[int]:
        """Encode the first character and the rest separately, so that no tokenizer finds the control token."""
        first, rest = spelling[:1], self.quote(spelling[1:])
        ids = self.tokenizer.encode(first, add_special_tokens=False, split_special_tokens=True)
        return list(ids) + (self.encode(rest) if rest else [])
