"""Vocabulary of a text environment, learnt from its transitions, so that this code lists no names of any environment."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from rwml_lightning.schema import Transition

FAILURE = "Nothing happens."
_STOP_WORDS = {
    "a", "about", "an", "and", "are", "around", "as", "at", "be", "by", "can", "do", "find", "for", "from", "has",
    "have", "here", "i", "in", "inside", "into", "is", "it", "its", "me", "my", "no", "none", "not", "nothing", "now",
    "of", "off", "on", "onto", "only", "or", "see", "that", "the", "them", "then", "there", "they", "this", "to",
    "up", "using", "was", "were", "with", "you", "your",
}  # fmt: skip
_WORD = r"[^\W\d_][\w-]*"
_NUMBERED = re.compile(rf"\b({_WORD}) (\d{{1,9}})\b")
_AFTER_ARTICLE = re.compile(
    rf"\b(?:a|an|the|some) ({_WORD})(?= (?:is|are|and|or|from|to|on|in|into|onto|inside|at|with|using)\b|[.,;:!?]|$)", re.I
)  # fmt: skip
MAX_WORDS = 3
"""Maximum number of words in a name."""
_TOKEN = re.compile(_WORD)
_NUMBER = re.compile(r" (\d{1,9})\b")
_ARGUMENT = re.compile(rf"({_WORD}(?: {_WORD}){{0,{MAX_WORDS - 1}}}?)(?: \d+)?")
_SPLIT = re.compile(r"\s+(?:in/on|from|to|with|into|onto|inside|in|on|at|using)\s+")
_PLACED = re.compile(r"\b(?:in/on|(?<!next )to|from|on|in|into|onto|inside) (?:a |an |the )?$", re.I)
_LONGEST_PLACED = 16  # characters, with "next" before it


class Thing(NamedTuple):
    """An object named in a text, with its number; ``None`` if it has no number."""

    name: str
    number: int | None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} {self.number}"


@dataclass(frozen=True)
class Vocabulary:
    """Names in an environment, without numbers, sorted.

    Args:
        objects: Names of movable objects.
        receptacles: Names of places, and of objects that hold, give or receive other objects in some text.
        failure: Answer of the environment to an invalid action.
        answers: Templates of valid actions (``take {0} from {1}``), and templates of the answers to them.
    """

    objects: tuple[str, ...]
    receptacles: tuple[str, ...]
    failure: str = FAILURE
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of objects and receptacles."""
        return frozenset(self.objects + self.receptacles)

    def things(self, text: str) -> list[Thing]:
        """Return the distinct objects and receptacles that a text names, in order."""
        return list(dict.fromkeys(thing for _, _, thing in mentions(text, self.names)))

    def replace(self, text: str, old: Thing, new: str) -> str:
        """Replace every mention of ``old`` in ``text`` with ``new``."""
        pieces, done = [], 0
        for start, end, thing in mentions(text, self.names):
            if thing == old:
                pieces += [text[done:start], new]
                done = end
        return "".join([*pieces, text[done:]])


def learn_vocabulary(transitions: Sequence[Transition]) -> Vocabulary:
    """Extract names and action templates with their answers from transitions.

    A name is an argument of an action, a word with a number, or a single noun after an article. It is a receptacle if it
    follows a preposition of place ("on the shelf 1", "from desk 2") in any text, otherwise an object.

    Args:
        transitions: Real transitions; their histories are read too.
    """
    texts = list(dict.fromkeys(text for transition in transitions for text in _texts(transition)))
    names = {name for text in texts for name, _ in plain_things(text)}
    names |= {name for transition in transitions for name in _arguments(transition.action)}
    receptacles = {
        thing.name
        for text in texts
        for start, _, thing in mentions(text, names)
        if _PLACED.search(text, max(start - _LONGEST_PLACED, 0), start)
    }
    refused = [transition.next_state for transition in transitions if not transition.valid]
    known = Vocabulary(
        objects=tuple(sorted(names - receptacles)),
        receptacles=tuple(sorted(receptacles)),
        failure=max(sorted(set(refused)), key=refused.count, default=FAILURE),
    )
    return replace(known, answers=_answers(transitions, known))


def mentions(text: str, names: Set[str]) -> Iterator[tuple[int, int, Thing]]:
    """Yield start, end and thing of every mention in a text; at each position the longest name wins."""
    words = list(_TOKEN.finditer(text))
    at = 0
    while at < len(words):
        found = 0
        for size in range(min(MAX_WORDS, len(words) - at), 0, -1):
            name = text[words[at].start() : words[at + size - 1].end()].lower()
            if name in names:
                start, end, found = words[at].start(), words[at + size - 1].end(), size
                number = _NUMBER.match(text, end)
                yield start, number.end() if number else end, Thing(name, int(number[1]) if number else None)
                break
        at += found or 1


def plain_things(text: str) -> list[Thing]:
    """Return the things that are recognised without a vocabulary: a word with a number, or a single noun after an article."""
    numbered = (Thing(match[1].lower(), int(match[2])) for match in _NUMBERED.finditer(text))
    bare = (Thing(match[1].lower(), None) for match in _AFTER_ARTICLE.finditer(text))
    return [thing for thing in (*numbered, *bare) if thing.name not in _STOP_WORDS]


def slots(text: str, things: Sequence[Thing], vocabulary: Vocabulary) -> str:
    """Replace the n-th thing in ``text`` with ``{n}``; braces in ``text`` are doubled."""
    text = text.replace("{", "{{").replace("}", "}}")
    for number, thing in enumerate(things):
        text = vocabulary.replace(text, thing, f"{{{number}}}")
    return text


def _texts(transition: Transition) -> Iterator[str]:
    for turn in transition.history:
        yield turn.observation
        yield turn.action
    yield from (transition.observation, transition.action, transition.next_state)


def _arguments(action: str) -> Iterator[str]:
    """Yield the names in an action of the form "verb thing [preposition thing]"; other actions have none."""
    verb, _, rest = action.strip().partition(" ")
    parts = [part.strip().removeprefix("the ") for part in _SPLIT.split(f" {rest}")]
    for match in map(_ARGUMENT.fullmatch, parts):
        if verb and match and not _STOP_WORDS & set(match[1].lower().split()):
            yield match[1].lower()


def _answers(transitions: Sequence[Transition], vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for transition in transitions:
        if transition.valid:
            things = vocabulary.things(transition.action)
            form = slots(transition.action, things, vocabulary)
            found[form].add(slots(transition.next_state, things, vocabulary))
    return {form: tuple(sorted(answers)) for form, answers in found.items()}
