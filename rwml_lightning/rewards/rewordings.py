"""Rewordings of a real next state; a good reward accepts them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from rwml_lightning.rewards.phrases import (
    Change,
    Variant,
    both_ways,
    exchange,
    pick_list,
    variants_of,
    with_list,
)
from rwml_lightning.rewards.vocabulary import Vocabulary
from rwml_lightning.schema import Transition

_SYNONYMS = (
    ("you see nothing", "there is nothing"), ("you see", "you notice"), ("you pick up", "you take"),
    ("you arrive at", "you get to"), ("you move", "you put"), ("you turn", "you switch"), ("you clean", "you wash"),
    ("using", "with"), ("you are carrying", "you carry"), ("you are not carrying anything", "you carry nothing"),
    ("nothing happens", "there is no effect"), ("is closed", "is shut"), ("you are facing", "you stand before"),
)  # fmt: skip
_CONTRACTIONS = (
    ("is not", "isn't"), ("are not", "aren't"), ("do not", "don't"), ("can not", "can't"), ("you are", "you're"),
    ("there is", "there's"), ("it is", "it's"),
)  # fmt: skip


def rewordings(transition: Transition, vocabulary: Vocabulary, seed: int) -> list[Variant]:
    """Express the same next state in other words, at most once per kind of :data:`REWORDINGS`.

    Args:
        transition: Real transition.
        vocabulary: Names and answers of the environment.
        seed: Random seed; all draws depend only on it, the transition and the kind.
    """
    return variants_of(REWORDINGS, transition, vocabulary, seed, 1)


def _other_words(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    return exchange(transition.next_state, dict(_SYNONYMS))


def _contracted(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    return exchange(transition.next_state, both_ways(_CONTRACTIONS))


def _without_articles(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    return re.sub(r"\b(?:an?|the) (?=\w)", "", transition.next_state, flags=re.I)


def _reordered(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    found, items = pick_list(transition.next_state, rng)
    if found is None or len(items) < 2:
        return None
    turned = rng.randint(1, len(items) - 1)
    return with_list(found, items[turned:] + items[:turned])


def _without_punctuation(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    return re.sub(r"[.!](?=\s|$)", "", transition.next_state).lower()


REWORDINGS: Mapping[str, Change] = {
    "other words": _other_words,
    "contractions": _contracted,
    "no articles": _without_articles,
    "list reordered": _reordered,
    "no punctuation": _without_punctuation,
}
"""Rewordings by kind."""
