"""Episodes turn by turn, read back from what W&B wrote offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from rwml_callbacks import EpisodeTable

from rwml_lightning.modules import PolicyGRPO
from rwml_lightning.schema import (
    EpisodeBatch,
)
from support.tables import make_group
from support.wandb_files import offline_runs


@pytest.fixture(autouse=True)
def no_run_left_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    yield
    wandb.finish()


@pytest.mark.heavy
def test_a_row_a_turn_over_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PolicyGRPO, "num_planned_steps", 2)
    logger = WandbLogger(project="test", save_dir=tmp_path, id="abc", offline=True)
    table, module = EpisodeTable(episodes_per_step=3, max_chars=100), PolicyGRPO(model="none")
    groups = (make_group("a"), make_group("b"))
    for step in (1, 2):
        trainer: Any = SimpleNamespace(
            global_step=step,
            loggers=[logger],
            sanity_checking=False,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        table.on_train_batch_end(trainer, module, {"batch": EpisodeBatch(step, 0, groups)}, None, 0)
    module.games.groups = [replace(groups[0], split="valid")]
    table.on_validation_end(trainer, module)
    table.on_train_end(trainer, module)
    wandb.finish()
    (part,) = offline_runs(tmp_path)
    rows = [
        dict(zip(t["columns"], row, strict=True)) for t in part.increments("episodes") for row in t["data"]
    ]
    assert tuple(rows[0]) == EpisodeTable.columns
    shown = [(row["step"], row["split"], row["game"], row["member"], row["turn"]) for row in rows]
    each = [("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 1), ("a", 1, 0), ("a", 1, 1)]
    assert shown == [
        *[(step, "train", *one) for step in (1, 2) for one in each],
        *[(2, "validation", "a", member, turn) for member in range(3) for turn in range(2)],
    ]
    first, second = rows[:2]
    assert (first["observation"], first["action"], first["valid"], first["reward"]) == (
        "room 0",
        "go on",
        False,
        0,
    )
    assert (second["valid"], second["reward"], second["advantage"]) == (True, 0.5, 0.25)
    assert (first["solved"], rows[2]["solved"], first["kind"]) == (True, False, "walk")
    assert len(first["thinking"]) == 100
    assert rows[-1]["advantage"] is None


def test_without_wandb_nothing_is_kept() -> None:
    table: Any = EpisodeTable()
    trainer: Any = SimpleNamespace(global_step=1, loggers=[])
    module = PolicyGRPO(model="none")
    table.add(trainer, module, "train", [make_group("a")])
    assert table.state_dict() == {"rows": [], "num_logged": 0}
    with pytest.raises(ValueError, match="EpisodeTable: episodes_per_step is 0"):
        EpisodeTable(episodes_per_step=0)
