"""Different rewards for different kinds of next states."""

from __future__ import annotations

from collections.abc import Sequence

from rwml_lightning.rewards.base import NextStateReward
from rwml_lightning.schema import Score, Transition


class RewardByKind:
    """Scores each prediction by the reward of its transition's kind; a hybrid such as the one of arXiv 2602.05842 for tau2-bench.

    Each reward scores its share of a step at once. ``Score.parts`` holds the parts of the reward that judged, and its own value
    under the name of the kind.

    Args:
        rewards: Rewards by kind, for example ``tool`` and ``user``.

    Raises:
        ValueError: No rewards; when scoring, a transition of a kind that has none.
    """

    def __init__(self, rewards: dict[str, NextStateReward]) -> None:
        if not rewards:
            raise ValueError("reward.rewards is empty; name a reward for each kind of transition")
        self.rewards = rewards
        self.success_similarity = next(iter(rewards.values())).success_similarity

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        """See :class:`NextStateReward`; the similarity is that of the reward that judges."""
        scores: list[Score | None] = [None] * len(transitions)
        places: dict[str, list[int]] = {}
        for place, transition in enumerate(transitions):
            self.reward_for(transition)
            places.setdefault(transition.kind, []).append(place)
        for kind, own in places.items():
            judged = self.rewards[kind].score([transitions[i] for i in own], [predictions[i] for i in own])
            for place, score in zip(own, judged, strict=True):
                scores[place] = score if score is None else _name(score, kind)
        return scores

    def reward_for(self, transition: Transition) -> NextStateReward:
        """The reward that judges a transition."""
        reward = self.rewards.get(transition.kind)
        if reward is None:
            raise ValueError(
                f"reward.rewards has none for {transition.kind!r}, the kind of transition {transition.transition_id}; it has "
                f"{', '.join(self.rewards)}"
            )
        return reward


def _name(score: Score, kind: str) -> Score:
    return Score(score.reward, score.similarity, score.well_formed, {kind: score.reward, **score.parts})
