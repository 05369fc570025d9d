"""Prepared batches for the validation of every stage, and a data module that loads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from rwml_lightning.evaluation import HeldOutBatch, Measured, Result, summarise
from rwml_lightning.evaluation.measures import measure_groups
from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeGroup,
    Group,
    Playthrough,
    Prediction,
    Score,
    Turn,
)
from support.rewards import LetterReward
from support.worlds import make_transition

REWARD = LetterReward()


def make_group(number: int, similarity: float) -> Group:
    score = Score(similarity, similarity, True)
    completion = Completion((1, 2), (-1.0, -1.0), "stop", 0)
    predictions = tuple(Prediction(completion, "", "", "You stand.", score, 0.0, m) for m in range(2))
    kind = "navigation" if number % 2 else "other"
    return Group(make_transition(number, kind=kind), (1,), "", predictions)


def make_game(number: int, success: bool) -> EpisodeGroup:
    episode = Episode(f"e{number}", "test", f"g{number}", "t", 0, (Turn("A", "a"),), "end", success)
    return EpisodeGroup(
        f"g{number}",
        "validation",
        (Playthrough(episode, (ActionSample((1,), Completion((2, 3), (-1.0, -1.0), "stop", 0), 0.0),)),),
    )


GROUPS = tuple(make_group(number, number / 5) for number in range(6))
GAMES = tuple(make_game(number, number > 0) for number in range(3))


def floors_of(groups: Sequence[Group]) -> list[dict[str, Measured]]:
    """Return the results of two predictors without a model on each transition; the second one predicts only every other one."""
    rows = measure_groups(groups, REWARD)
    return [{"nothing": row} | ({"seldom": row} if number % 2 else {}) for number, row in enumerate(rows)]


def held_out(*groups: Group) -> HeldOutBatch:
    """Make a batch of held-out predictions with the measures of the real data module."""
    return HeldOutBatch(groups, tuple(measure_groups(groups, REWARD)), tuple(floors_of(groups)))


def summarise_floors(groups: Sequence[Group]) -> list[Result]:
    rows = floors_of(groups)
    return [summarise(name, [row[name] for row in rows if name in row]) for name in ("nothing", "seldom")]


class Prepared(L.LightningDataModule):
    """Load prepared batches, with one loader per argument."""

    def __init__(self, *loaders: Sequence[Any]) -> None:
        super().__init__()
        self.loaders = loaders

    def val_dataloader(self) -> Any:
        return [
            torch.utils.data.DataLoader(list(batches), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
            for batches in self.loaders
        ]

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


def make_trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
