"""Small grammar for changing texts: it edits lists of items and replaces phrases."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rwml_lightning.rewards.vocabulary import Vocabulary
from rwml_lightning.schema import Transition
from rwml_lightning.seeds import derive_seed

_WORD = r"[^\W\d_][\w-]*"
_ITEM = rf"\b(?:an?|some) {_WORD}(?: (?!(?:and|is|are|on|in|from|to)\b){_WORD}){{0,2}}?(?: \d+|(?=[.,;!?]| and |$))"
_SEPARATOR = re.compile(r", and |, | and ")
_LIST = re.compile(rf"{_ITEM}(?:(?:{_SEPARATOR.pattern}){_ITEM})*|\bnothing(?=[.,;!?]|$)")
Change = Callable[[Transition, Vocabulary, random.Random], str | None]
"""Function that changes the next state of a transition; it returns ``None`` or the same text if it finds nothing to change."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A text made from a real next state.

    Args:
        kind: Name of the change.
        text: Full text after the change.
    """

    kind: str
    text: str


def variants_of(
    changes: Mapping[str, Change], transition: Transition, vocabulary: Vocabulary, seed: int, per_kind: int
) -> list[Variant]:
    """Apply each change at most ``per_kind`` times; return distinct texts other than the real next state."""
    seen = {transition.next_state}
    variants: list[Variant] = []
    for kind, change in changes.items():
        for number in range(per_kind):
            rng = random.Random(derive_seed(seed, kind, transition.transition_id, number))
            text = change(transition, vocabulary, rng)
            if text and text not in seen:
                seen.add(text)
                variants.append(Variant(kind, text))
    return variants


def both_ways(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Map each phrase of a pair to the other one."""
    return dict(pairs) | {right: left for left, right in pairs}


def exchange(text: str, phrases: Mapping[str, str]) -> str:
    """Replace the phrases in ``text`` in a single pass; longer phrases match first, a leading capital is kept."""
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b"

    def new(match: re.Match[str]) -> str:
        phrase = phrases[match[0].lower()]
        return phrase[0].upper() + phrase[1:] if match[0][0].isupper() else phrase

    return re.sub(pattern, new, text, flags=re.I | re.A)


def pick_list(text: str, rng: random.Random) -> tuple[re.Match[str] | None, list[str]]:
    """Pick a random list in a text ("a mug 1, and a pen 2", or "nothing"); return its match and its items."""
    found = list(_LIST.finditer(text))
    if not found:
        return None, []
    chosen = rng.choice(found)
    return chosen, [] if chosen[0] == "nothing" else _SEPARATOR.split(chosen[0])


def with_list(found: re.Match[str], items: Sequence[str]) -> str:
    """Replace the items of the list ``found`` in its text; the style of the separators is kept."""
    last = " and " if " and " in found[0] and ", and " not in found[0] else ", and "
    joined = last.join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items) or "nothing"
    return found.string[: found.start()] + joined + found.string[found.end() :]


def listed(text: str) -> str:
    """Return the lists in a text, joined by spaces."""
    return " ".join(found[0] for found in _LIST.finditer(text))
