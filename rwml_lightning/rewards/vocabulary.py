"""What a text world names: learnt from its own transitions, so that no world's list of things is written down here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rwml_lightning.schema import Transition

FAILURE = "Nothing happens."
_NO_NAMES = {
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
_ARGUMENT = re.compile(rf"({_WORD}(?: {_WORD}){{0,2}}?)(?: \d+)?")
_SPLIT = re.compile(r"\s+(?:in/on|from|to|with|into|onto|inside|in|on|at|using)\s+")
_PLACED = r"(?:in/on|(?<!next )to|from|on|in|into|onto|inside) (?:a |an |the )?"


class Thing(NamedTuple):
    """A named thing as it stands in a text; the number is ``None`` where it has none."""

    name: str
    number: int | None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} {self.number}"


@dataclass(frozen=True)
class Vocabulary:
    """Names of a world, without numbers, sorted.

    Args:
        objects: Things that lie about.
        receptacles: Things that were seen to hold, give or receive others, and places.
        failure: What the world answers to an action that it refuses.
        answers: Accepted actions with their things taken out (``take {0} from {1}``), and the answers that they got,
            likewise.
    """

    objects: tuple[str, ...]
    receptacles: tuple[str, ...]
    failure: str = FAILURE
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _pattern: re.Pattern[str] | None = None

    def things(self, text: str) -> list[Thing]:
        """The distinct things that a text names, in order."""
        return list(dict.fromkeys(thing for _, thing in self.mentions(text)))

    def mentions(self, text: str) -> Iterator[tuple[re.Match[str], Thing]]:
        """Every place where a text names a thing."""
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                yield match, Thing(match[1].lower(), int(match[2]) if match[2] else None)

    def replace(self, text: str, old: Thing, new: str) -> str:
        """``text`` with every mention of ``old`` replaced."""
        pieces, end = [], 0
        for match, thing in self.mentions(text):
            if thing == old:
                pieces += [text[end : match.start()], new]
                end = match.end()
        return "".join([*pieces, text[end:]])


def learn_vocabulary(transitions: Sequence[Transition]) -> Vocabulary:
    """Read a world's names, and its answers by form of action, off its transitions.

    A name is what an action acts on, a word with a number, or a single noun after an article. It is a receptacle where it
    stands behind a preposition of place ("on the shelf 1", "from desk 2") anywhere, an object otherwise.

    Args:
        transitions: What really happened; their histories are read too.
    """
    texts = list(dict.fromkeys(text for transition in transitions for text in _texts(transition)))
    names = {name for text in texts for name, _ in plain_things(text)}
    names |= {name for transition in transitions for name in _arguments(transition.action)}
    pattern = _any_of(names)
    if pattern is None:
        return Vocabulary((), ())
    placed = re.compile(rf"\b{_PLACED}{pattern.pattern}", re.I)
    receptacles = {match[1].lower() for text in texts for match in placed.finditer(text)}
    known = Vocabulary((), (), _pattern=pattern)
    refused = [transition.next_state for transition in transitions if not transition.valid]
    return Vocabulary(
        objects=tuple(sorted(names - receptacles)),
        receptacles=tuple(sorted(receptacles)),
        failure=max(sorted(set(refused)), key=refused.count, default=FAILURE),
        answers=_answers(transitions, known),
        _pattern=pattern,
    )


def plain_things(text: str) -> list[Thing]:
    """Things that can be told without a vocabulary: a word with a number, a single noun after an article."""
    numbered = (Thing(match[1].lower(), int(match[2])) for match in _NUMBERED.finditer(text))
    bare = (Thing(match[1].lower(), None) for match in _AFTER_ARTICLE.finditer(text))
    return [thing for thing in (*numbered, *bare) if thing.name not in _NO_NAMES]


def slots(text: str, things: Sequence[Thing], vocabulary: Vocabulary) -> str:
    """``text`` with the n-th thing replaced by ``{n}``; braces of its own are doubled."""
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
    """Names in an action of the form "verb thing [preposition thing]"; none in one of another form."""
    verb, _, rest = action.strip().partition(" ")
    parts = [part.removeprefix("the ") for part in _SPLIT.split(f" {rest}") if part.strip()]
    for match in (_ARGUMENT.fullmatch(part.strip()) for part in parts):
        if verb and match and not _NO_NAMES & set(match[1].lower().split()):
            yield match[1].lower()


def _any_of(names: set[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    alternatives = "|".join(map(re.escape, longest_first))
    return re.compile(rf"\b({alternatives})\b(?: (\d{{1,9}})\b)?", re.I) if names else None


def _answers(transitions: Sequence[Transition], vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for transition in transitions:
        if transition.valid:
            things = vocabulary.things(transition.action)
            form = slots(transition.action, things, vocabulary)
            found[form].add(slots(transition.next_state, things, vocabulary))
    return {form: tuple(sorted(answers)) for form, answers in found.items()}
