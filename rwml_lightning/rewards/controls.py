"""Control runs: training on an uninformative reward, to separate the effect of the true reward from other effects.

A control replaces only the reward used for training; everything else stays the same (arXiv 2609.33335):

- ``mismatched``: the true reward, computed against the next state of another sample;
- ``coin``: 1 or 0 with equal probability, independent of the prediction;
- ``permuted``: the true rewards, shuffled within the group. This equals shuffling the advantages: the advantage of a
  member is its reward, normalised by the mean and standard deviation of the group, which shuffling does not change.

Every random draw is determined by its position in the run. The part ``true_reward`` of a score keeps the true reward.
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
"""Part of a score that holds the reward without the control."""


class Control:
    """Replaces the true reward with an uninformative one.

    Args:
        name: Name of the control; not ``none``.
        seed: Seed of the run.
        transitions: All training transitions; ``mismatched`` exchanges their next states.

    Raises:
        ValueError: If ``mismatched`` gets fewer than two transitions.
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
        """Compute the scores for training, with the shape of ``scores``.

        Args:
            reward: True reward.
            position: Position of the step in the run.
            transitions: One transition per group.
            predictions: Predicted next states, one row per group.
            scores: True scores of the predictions.
        """
        if self.name == "mismatched":
            owners = [
                replace(t, next_state=self.targets[t.transition_id])
                for t, row in zip(transitions, predictions, strict=True)
                for _ in row
            ]
            flat = iter(score_checked(reward, owners, [text for row in predictions for text in row]))
            control_scores = [[next(flat) for _ in row] for row in predictions]
        else:
            draw = {"coin": coin, "permuted": permuted}[self.name]
            control_scores = [
                draw(row, derive_seed(self.seed, "control", *position, transition.transition_id))
                for transition, row in zip(transitions, scores, strict=True)
            ]
        return [
            [_with_reward(*pair) for pair in zip(*rows, strict=True)]
            for rows in zip(scores, control_scores, strict=True)
        ]


def derangement(texts: Sequence[str], seed: int) -> list[int]:
    """Draw a random permutation that maps no index to itself and, if possible, none to an equal text.

    The search starts from a random permutation and swaps entries that violate this. If no text makes up more than half of
    ``texts``, there is always a swap that resolves both entries.

    Args:
        texts: At least two texts.
        seed: Seed of the permutation.

    Raises:
        ValueError: If there are fewer than two texts.
    """
    count = len(texts)
    if count < 2:
        raise ValueError(f"control is 'mismatched', which needs at least two transitions; there are {count}")
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
    """Draw reward 1 or 0 with equal probability for each member."""
    return [Score(float(derive_seed(seed, member) % 2), None, False) for member in range(len(scores))]


def permuted(scores: Sequence[Score | None], seed: int) -> list[Score | None]:
    """Shuffle the scores."""
    return [scores[i] for i in sorted(range(len(scores)), key=lambda member: derive_seed(seed, member))]


def _with_reward(true: Score | None, control: Score | None) -> Score | None:
    if true is None or control is None:
        return None
    return replace(true, reward=control.reward, parts={**true.parts, TRUE_REWARD: true.reward})
