"""Rewards for predicted next states."""

from rwml_lightning.rewards.base import NextStateReward
from rwml_lightning.rewards.content import ContentReward
from rwml_lightning.rewards.contrastive import ContrastiveReward
from rwml_lightning.rewards.embedding import EmbeddingReward
from rwml_lightning.rewards.extraction import Answer, extract_answer, format_answer

__all__ = [
    "Answer",
    "ContentReward",
    "ContrastiveReward",
    "EmbeddingReward",
    "NextStateReward",
    "extract_answer",
    "format_answer",
]
