"""Rewards for predicted next states."""

from rwml_lightning.rewards.base import NextStateReward
from rwml_lightning.rewards.by_kind import RewardByKind
from rwml_lightning.rewards.content import ContentReward
from rwml_lightning.rewards.contrastive import ContrastiveReward
from rwml_lightning.rewards.embedding import EmbeddingReward
from rwml_lightning.rewards.judge import JudgeReward
from rwml_lightning.rewards.server import Server, ServerError
from rwml_lightning.rewards.text import ExactMatchReward, RougeReward
from rwml_lightning.rewards.weighted import WeightedReward

__all__ = [
    "ContentReward",
    "ContrastiveReward",
    "EmbeddingReward",
    "ExactMatchReward",
    "JudgeReward",
    "NextStateReward",
    "RewardByKind",
    "RougeReward",
    "Server",
    "ServerError",
    "WeightedReward",
]
