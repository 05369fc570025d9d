"""Controls: training on a reward that knows nothing, so that what the true one teaches can be told from the rest.

With a control everything is as it would be without, but for the reward that training sees (arXiv 2609.33335):

- ``mismatched``: the true reward against another sample's next state;
- ``coin``: 1 or 0 with equal chance, whatever was predicted;
- ``permuted``: the true rewards, shuffled within the group. It is the same as shuffling advantages: a member's advantage
  is its own reward, normalised by mean and standard deviation of the group's rewards, which no shuffling changes.

Each draw follows from its position in the run. The true reward stays visible as the part ``true_reward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rwml_lightning.rewards.base import NextStateReward, score_checked
from rwml_lightning.schema import Score, Transition
from rwml_lightning.seeds import derive_seed

ControlName = Literal["none", "mismatched", "coin", "permuted"]
TRUE_REWARD = "true_reward"
"""Part of a score that holds what the prediction would have earned without the control."""


class Control:
    """Puts a reward that knows nothing in place of the true one.

    Args:
        name: Which one; not ``none``.
        seed: The run's seed.
        transitions: All training transitions, among which targets are exchanged.

    Raises:
        ValueError: ``mismatched`` with fewer than two transitions.
    """

    def __init__(self, name: ControlName, seed: int, transitions: Sequence[Transition]) -> None:
        self.name = name
        self.seed = seed
        self.targets: dict[str, str] = {}
        if name == "mismatched":
            texts = [transition.next_state for transition in transitions]
            places = derangement(texts, derive_seed(seed, "control", name))
            self.targets = {t.transition_id: texts[i] for t, i in zip(transitions, places, strict=True)}

    def apply(
        self,
        reward: NextStateReward,
        position: tuple[int | str, ...],
        transitions: Sequence[Transition],
        predictions: Sequence[Sequence[str | None]],
        scores: Sequence[Sequence[Score | None]],
    ) -> list[list[Score | None]]:
        """Scores to train on, shaped as ``scores``.

        Args:
            reward: The true reward.
            position: Where the step stands in the run.
            transitions: One a group.
            predictions: Predicted next states, one row a group.
            scores: Their true scores.
        """
        if self.name == "mismatched":
            owners = [
                replace(t, next_state=self.targets[t.transition_id])
                for t, row in zip(transitions, predictions, strict=True)
                for _ in row
            ]
            flat = iter(score_checked(reward, owners, [text for row in predictions for text in row]))
            told = [[next(flat) for _ in row] for row in predictions]
        else:
            draw = {"coin": coin, "permuted": permuted}[self.name]
            told = [
                draw(row, derive_seed(self.seed, "control", *position, transition.transition_id))
                for transition, row in zip(transitions, scores, strict=True)
            ]
        return [
            [_with_reward(*pair) for pair in zip(*rows, strict=True)]
            for rows in zip(scores, told, strict=True)
        ]


def derangement(texts: Sequence[str], seed: int) -> list[int]:
    """A random place for every place, each taken once: never its own, nor one with the same text where that can be.

    Starts from a random permutation and exchanges places that clash; while no text makes up more than half, there is
    always a place to exchange with that leaves neither clashing.

    Args:
        texts: At least two.
        seed: Seed of the permutation.

    Raises:
        ValueError: Fewer than two texts.
    """
    count = len(texts)
    if count < 2:
        raise ValueError(
            f"control is 'mismatched', which takes two transitions or more to exchange; there are {count}"
        )
    places = sorted(range(count), key=lambda i: derive_seed(seed, i))
    for i in range(count):
        if texts[places[i]] != texts[i]:
            continue
        others = ((i + step) % count for step in range(1, count))
        good = (j for j in others if texts[i] not in (texts[j], texts[places[j]]))
        j = next(good, (i + 1) % count if places[i] == i else i)
        places[i], places[j] = places[j], places[i]
    return places


def coin(scores: Sequence[Score | None], seed: int) -> list[Score | None]:
    """A fair coin's rewards, one a member."""
    return [Score(float(derive_seed(seed, member) % 2), None, False) for member in range(len(scores))]


def permuted(scores: Sequence[Score | None], seed: int) -> list[Score | None]:
    """The same scores in a random order."""
    return [scores[i] for i in sorted(range(len(scores)), key=lambda member: derive_seed(seed, member))]


def _with_reward(true: Score | None, told: Score | None) -> Score | None:
    if true is None or told is None:
        return None
    return replace(true, reward=told.reward, parts={**true.parts, TRUE_REWARD: true.reward})
