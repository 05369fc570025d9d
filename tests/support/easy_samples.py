"""The easy-sample filter on the small world, and a reader of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rwml_callbacks import EasySampleFilter

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import HFGenerator
from rwml_lightning.schema import Sampling
from support.rewards import LetterReward
from support.worlds import ACTION_PROMPT, make_world


def make_filter(**arguments: Any) -> EasySampleFilter:
    defaults = {
        "num_samples": 4,
        "tau_d": 0.05,
        "learning_rate": 1e-4,
        "batch_size": 4,
        "prompts_per_batch": 8,
    }
    return EasySampleFilter(**{**defaults, **arguments})


def make_data(folder: Path, **arguments: Any) -> RolloutDataModule:
    """Make the data module of the small world; ``arguments`` are settings of its predictions."""
    path = folder / "t.parquet"
    if not path.exists():
        write_transitions(path, make_world())
    predictions = Predictions(
        str(path), LetterReward(0.05), prompt=ACTION_PROMPT, sampling=Sampling(20),
        **{"prompts_per_step": 8, "group_size": 4, "num_passes": 1, **arguments},
    )  # fmt: skip
    return RolloutDataModule(HFGenerator(), predictions=predictions)


def columns(folder: Path) -> dict[str, tuple[float | None, bool | None]]:
    rows = pq.read_table(folder / "t.parquet").to_pylist()
    return {row["transition_id"]: (row["filter_mean_reward"], row["filter_kept"]) for row in rows}
