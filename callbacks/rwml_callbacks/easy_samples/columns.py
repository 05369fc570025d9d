"""The easy-sample filter's result as two extra columns of a transition file, which other readers ignore."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rwml_lightning.data.transitions import METADATA_KEY, read_metadata
from rwml_lightning.files import replacing

MEAN_REWARD, KEPT = "filter_mean_reward", "filter_kept"
_SETTINGS = "easy_sample_filter"


@dataclass(frozen=True)
class FilterColumns:
    """Result of the filter.

    Args:
        mean_rewards: Mean reward of the predictions of each judged transition, by transition id.
        settings: Settings of the filter, as JSON values.
    """

    mean_rewards: dict[str, float]
    settings: dict[str, Any]


def read_filter_columns(path: Path) -> FilterColumns | None:
    """Read the filter's result from a transition file; ``None`` if the file has none."""
    settings = read_metadata(path).get(_SETTINGS)
    if settings is None:
        return None
    table = pq.read_table(path, columns=["transition_id", MEAN_REWARD])
    rewards = zip(table["transition_id"].to_pylist(), table[MEAN_REWARD].to_pylist(), strict=True)
    return FilterColumns({name: reward for name, reward in rewards if reward is not None}, settings)


def write_filter_columns(
    path: Path, mean_rewards: Mapping[str, float], kept: Collection[str], settings: Mapping[str, Any]
) -> None:
    """Add the columns to a transition file atomically, or replace those of an earlier filter.

    Args:
        path: Transition file. Its other columns and metadata do not change.
        mean_rewards: Mean reward of each judged transition, by transition id; both columns are null for all others.
        kept: Ids of the judged transitions that stay in training.
        settings: Settings of the filter, as JSON values.
    """
    table = pq.read_table(path)
    table = table.select([name for name in table.column_names if name not in (MEAN_REWARD, KEPT)])
    names = table["transition_id"].to_pylist()
    rewards = [mean_rewards.get(name) for name in names]
    decisions = [name in kept if name in mean_rewards else None for name in names]
    table = table.append_column(MEAN_REWARD, pa.array(rewards, pa.float64()))
    table = table.append_column(KEPT, pa.array(decisions, pa.bool_()))
    metadata = json.dumps({**read_metadata(path), _SETTINGS: dict(settings)}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: metadata})
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")
