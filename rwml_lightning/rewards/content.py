"""A reward that compares what an embedder overlooks: the objects, numbers and states that a text names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rwml_lightning.rewards.base import NextStateReward, PredictedTexts, Scores
from rwml_lightning.rewards.vocabulary import Vocabulary, learn_vocabulary, plain_things
from rwml_lightning.schema import Score, Transition

_STATES = {
    word: state
    for state, words in {
        "nothing": ("nothing", "not", "no", "none", "anything", "empty"),
        "effect": ("effect", "happens", "happened"),
        "open": ("open", "opens", "opened"),
        "closed": ("closed", "close", "closes", "shut", "shuts"),
        "locked": ("locked", "lock", "locks"),
        "unlocked": ("unlocked", "unlock", "unlocks"),
        "on": ("turn-on", "switch-on"),
        "off": ("turn-off", "switch-off"),
        "hot": ("hot", "heat", "heats", "heated"),
        "cold": ("cold", "cool", "cools", "cooled"),
        "clean": ("clean", "cleans", "cleaned", "wash", "washes", "washed"),
        "dirty": ("dirty",),
        "full": ("full",),
        "cut": ("slice", "slices", "sliced", "cut", "cuts"),
        "taken": ("take", "takes", "took", "pick", "picks", "picked"),
        "placed": ("put", "puts", "place", "places", "placed", "move", "moves", "moved"),
        "carried": ("carry", "carrying", "carried", "hold", "holding"),
    }.items()
    for word in words
}
_SWITCHED = re.compile(r"\b(turn|switch)(?:ed|es|s)? (on|off)\b")


class ContentReward:
    """Weights an inner reward by how well the prediction names the same objects, numbers and states as the real next state.

    A sentence embedder hardly distinguishes which mug or which shelf a text describes. The agreement is the F1 score between
    the :func:`content` of both texts: 1 for the same content in any wording, 0 for no common content. The rules are for
    English. They find little or no content in other languages, and without content the inner reward stays unchanged.

    Args:
        reward: Inner reward.
        min_agreement: ``None`` multiplies the inner reward by the agreement. A number keeps the full inner reward where the
            agreement is at least this number and gives 0 elsewhere (1: the prediction names everything and nothing else).

    Raises:
        ValueError: If ``min_agreement`` is outside (0, 1].
    """

    def __init__(self, reward: NextStateReward, min_agreement: float | None = None) -> None:
        if min_agreement is not None and not 0 < min_agreement <= 1:
            raise ValueError(
                f"reward.min_agreement is {min_agreement}; it must be above 0 and at most 1, or null to multiply by the F1"
            )
        self.inner = reward
        self.min_agreement = min_agreement
        self.success_similarity = reward.success_similarity

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the parts hold those of the inner reward, ``inner_reward`` and ``agreement``."""
        scores = self.inner.score(transitions, predictions)
        vocabularies = {t: learn_vocabulary([t]) for t in dict.fromkeys(transitions)}
        for i, (transition, prediction) in enumerate(zip(transitions, predictions, strict=True)):
            score = scores[i]
            if prediction is not None and score is not None:
                vocabulary = vocabularies[transition]
                agreement = f1(content(prediction, vocabulary), content(transition.next_state, vocabulary))
                scores[i] = self._weighted(score, agreement)
        return scores

    def _weighted(self, score: Score, agreement: float) -> Score:
        factor = agreement if self.min_agreement is None else float(agreement >= self.min_agreement)
        parts = {**score.parts, "inner_reward": score.reward, "agreement": agreement}
        return replace(score, reward=score.reward * factor, parts=parts)


def content(text: str, vocabulary: Vocabulary) -> frozenset[str]:
    """Extract the objects with their numbers and the states that a text names, in normal form ("shut" is "closed").

    Args:
        text: Predicted or real next state.
        vocabulary: Names that are recognised without a number, for example the names in the transition's texts.
    """
    things = {str(thing) for thing in (*vocabulary.things(text), *plain_things(text))}
    plain = re.sub(r"n't\b", " not", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    words = re.findall(r"[\w-]+", _SWITCHED.sub(r"\1-\2", plain))
    return frozenset(things | {_STATES[word] for word in words if word in _STATES})


def f1(predicted: frozenset[str], real: frozenset[str]) -> float:
    """Compute the harmonic mean of precision and recall of two sets; 1 if both are empty, because nothing differs."""
    total = len(predicted) + len(real)
    return 2 * len(predicted & real) / total if total else 1.0
