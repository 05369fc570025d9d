"""A different reward for each kind of transition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rwml_lightning.rewards.base import NextStateReward, PredictedTexts, Scores
from rwml_lightning.schema import Transition


class RewardByKind:
    """Scores each prediction with the reward for the kind of its transition.

    An example is the hybrid reward of arXiv 2602.05842 for tau2-bench. Each reward scores all its predictions of a step in
    one call. ``Score.parts`` holds the parts of the reward that was used, and its value under the name of the kind.

    Args:
        rewards: Rewards by kind, for example ``tool`` and ``user``.

    Raises:
        ValueError: If ``rewards`` is empty, or (when scoring) if a transition has a kind without a reward.
    """

    def __init__(self, rewards: dict[str, NextStateReward]) -> None:
        if not rewards:
            raise ValueError("reward.rewards is empty; name a reward for each kind of transition")
        self.rewards = rewards
        self.success_similarity = next(iter(rewards.values())).success_similarity

    def score(self, transitions: Sequence[Transition], predictions: PredictedTexts) -> Scores:
        """See :class:`NextStateReward`; the similarity comes from the reward of the kind."""
        scores: Scores = [None] * len(transitions)
        places: dict[str, list[int]] = {}
        for place, transition in enumerate(transitions):
            self.reward_for(transition)
            places.setdefault(transition.kind, []).append(place)
        for kind, indices in places.items():
            kind_scores = self.rewards[kind].score(
                [transitions[i] for i in indices], [predictions[i] for i in indices]
            )
            for place, score in zip(indices, kind_scores, strict=True):
                if score is not None:
                    scores[place] = replace(score, parts={kind: score.reward, **score.parts})
        return scores

    def reward_for(self, transition: Transition) -> NextStateReward:
        """Return the reward for the kind of ``transition``."""
        reward = self.rewards.get(transition.kind)
        if reward is None:
            raise ValueError(
                f"reward.rewards has no reward for the kind {transition.kind!r} of transition {transition.transition_id}; "
                f"it has {', '.join(self.rewards)}"
            )
        return reward
