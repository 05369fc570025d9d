"""Near misses: texts that differ from a real next state in one detail, which makes them wrong.

They are typical mistakes of a world model (another object, another number, a missing item). Small rules make them from the
text, so no second model is needed. A rule that finds nothing to change makes no near miss.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from rwml_lightning.rewards.phrases import (
    Change,
    Variant,
    both_ways,
    exchange,
    listed,
    pick_list,
    variants_of,
    with_list,
)
from rwml_lightning.rewards.vocabulary import Vocabulary, slots
from rwml_lightning.schema import Transition

_OPPOSITES = (
    ("is open", "is closed"), ("are open", "are closed"), ("open the", "close the"), ("is locked", "is unlocked"),
    ("turn on", "turn off"), ("switch on", "switch off"), ("is hot", "is cold"), ("is clean", "is dirty"),
    ("is full", "is empty"),
)  # fmt: skip


def near_misses(
    transition: Transition, vocabulary: Vocabulary, seed: int, per_kind: int = 1
) -> list[Variant]:
    """Make wrong next states that differ from the real one in one detail.

    Args:
        transition: Real transition.
        vocabulary: Names and answers of the environment, from which replacements are drawn.
        seed: Random seed; all draws depend only on it, the transition and the kind.
        per_kind: Number of draws per kind; equal texts count once.

    Returns:
        Distinct texts in the order of :data:`NEAR_MISSES`; none equals the real next state.
    """
    return variants_of(NEAR_MISSES, transition, vocabulary, seed, per_kind)


def _another(which: str) -> Change:
    def change(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
        names = getattr(vocabulary, which)
        present = vocabulary.things(transition.next_state)
        things = [thing for thing in present if thing.name in names]
        others = sorted(set(names) - {thing.name for thing in present})
        if not things or not others:
            return None
        thing = rng.choice(things)
        return vocabulary.replace(transition.next_state, thing, str(thing._replace(name=rng.choice(others))))

    return change


def _another_number(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    things = [thing for thing in vocabulary.things(transition.next_state) if thing.number is not None]
    if not things:
        return None
    thing = rng.choice(things)
    assert thing.number is not None
    other = thing._replace(number=rng.choice([n for n in (thing.number - 1, thing.number + 1) if n > 0]))
    return vocabulary.replace(transition.next_state, thing, str(other))


def _swapped_numbers(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    text = transition.next_state
    things = [thing for thing in vocabulary.things(text) if thing.number is not None]
    pairs = [(a, b) for a in things for b in things if a.name < b.name and a.number != b.number]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    swapped = slots(text, [a, b], vocabulary)
    return swapped.format(a._replace(number=b.number), b._replace(number=a.number))


def _name_missing(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    text = transition.next_state
    in_lists = vocabulary.things(listed(text))
    things = [thing for thing in vocabulary.things(text) if thing not in in_lists]
    if not things:
        return None
    without = re.sub(
        r"\b(?:an?|the|some) \0|\0", "", vocabulary.replace(text, rng.choice(things), "\0"), flags=re.I
    )
    return re.sub(r" +(?=[.,;:!?]|$)", "", " ".join(without.split()))


def _item_missing(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    found, items = pick_list(transition.next_state, rng)
    if found is None or not items:
        return None
    items.remove(rng.choice(items))
    return with_list(found, items)


def _item_added(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    found, items = pick_list(transition.next_state, rng)
    present = {thing.name for thing in vocabulary.things(transition.next_state)}
    absent = [name for name in vocabulary.objects if name not in present]
    if found is None or not absent:
        return None
    numbered = not items or any(item[-1].isdigit() for item in items)
    item = f"a {rng.choice(absent)}" + " 1" * numbered
    items.insert(rng.randint(0, len(items)), item)
    return with_list(found, items)


def _opposite_state(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    return exchange(transition.next_state, both_ways(_OPPOSITES))


def _failure_or_success(transition: Transition, vocabulary: Vocabulary, rng: random.Random) -> str | None:
    if transition.next_state != vocabulary.failure:
        return vocabulary.failure
    things = vocabulary.things(transition.action)
    answers = vocabulary.answers.get(slots(transition.action, things, vocabulary), ())
    return rng.choice(answers).format(*things) if answers else None


NEAR_MISSES: Mapping[str, Change] = {
    "another object": _another("objects"),
    "another receptacle": _another("receptacles"),
    "another number": _another_number,
    "swapped numbers": _swapped_numbers,
    "name missing": _name_missing,
    "item missing": _item_missing,
    "item added": _item_added,
    "opposite state": _opposite_state,
    "failure or success": _failure_or_success,
}
"""Near misses by kind."""
