"""One W&B table of all logged episodes, with a row per turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import lightning as L
from typing_extensions import override

from rwml_callbacks.wandb_table import GrowingTable, by_member, clip, wandb_logger
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Playthrough


class EpisodeTable(GrowingTable):
    """Log the W&B table ``episodes`` with a row per turn; see :class:`GrowingTable`.

    Args:
        episodes_per_step: Maximum number of episodes per step or evaluation. The first episode of each game comes before
            any second one.
        max_chars: Maximum number of characters per cell.

    Raises:
        ValueError: An argument is below 1.
    """

    name = "episodes"
    batch = EpisodeBatch
    evaluation = "games"
    columns = (
        "step", "stage", "split", "game", "kind", "member", "solved", "turn", "observation", "thinking", "action", "valid",
        "reward", "advantage",
    )  # fmt: skip

    def __init__(self, episodes_per_step: int = 4, max_chars: int = 500) -> None:
        super().__init__(episodes_per_step=episodes_per_step, max_chars=max_chars)
        self.episodes_per_step = episodes_per_step
        self.max_chars = max_chars

    @override
    def add(
        self, trainer: L.Trainer, module: PolicyModule, split: str, groups: Sequence[EpisodeGroup]
    ) -> None:
        if wandb_logger(trainer) is None:
            return
        place = (trainer.global_step, module.stage, split)
        members = by_member(enumerate(group.members) for group in groups)
        for number, member in islice(members, self.episodes_per_step):
            episode = member.episode
            which = (episode.game, episode.kind, number, episode.solved)
            self.add_rows(
                [(*place, *which, turn, *cells) for turn, cells in enumerate(self._turns(member, split))]
            )

    def _turns(self, member: Playthrough, split: str) -> Iterable[tuple[Any, ...]]:
        for turn, sample in zip(member.episode.turns, member.samples, strict=True):
            texts = (clip(text, self.max_chars) for text in (turn.observation, turn.thinking, turn.action))
            yield *texts, turn.valid, sample.reward, sample.advantage if split == "train" else None
