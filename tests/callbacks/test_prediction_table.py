"""The table of predictions and the histograms, read back from what W&B wrote offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from rwml_callbacks import PredictionTable, WeightSync
from rwml_callbacks.prediction_table import distributions
from rwml_callbacks.wandb_table import by_member, clip

from rwml_lightning.modules import WorldModelGRPO
from support.callback_runs import fit, make_batch
from support.tables import Log
from support.wandb_files import OfflineRun, offline_runs


@pytest.fixture(autouse=True)
def no_run_left_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    yield
    wandb.finish()


def make_logger(folder: Path) -> WandbLogger:
    return WandbLogger(project="test", save_dir=folder, id="abc", offline=True)


def rows_of(part: OfflineRun) -> list[dict[str, Any]]:
    tables = part.increments("predictions")
    return [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]


@pytest.mark.heavy
def test_one_table_holds_the_predictions_of_all_steps(tiny_model: Path, tmp_path: Path) -> None:
    fit(tmp_path, tiny_model, [WeightSync(), PredictionTable(rows_per_step=10)], logger=make_logger(tmp_path))
    wandb.finish()
    (part,) = offline_runs(tmp_path)
    rows = rows_of(part)
    steps = [(row["step"], row["split"]) for row in rows]
    assert steps == [
        *[(1, "train")] * 10, *[(2, "train")] * 10, *[(2, "validation")] * 8,
        *[(3, "train")] * 10, *[(4, "train")] * 10, *[(4, "validation")] * 8,
    ]  # fmt: skip
    assert tuple(rows[0]) == PredictionTable.columns
    for row in rows:
        assert (row["stage"], row["kind"]) == ("wm_grpo", row["action"].split()[0])
        assert (row["reward"] > 0) <= row["well-formed"]
        assert (row["advantage"] is None) == (row["split"] == "validation")
        assert row["policy version"] == row["step"] - (row["split"] == "train")
    assert len({row["action"] for row in rows[:8]}) == 8  # one of each group before a second of any
    sent = [row for row in part.history if "predictions.path" in row]
    assert len(sent[-1]["predictions.previous_increments_paths"]) == len(sent) - 1
    assert {row["predictions.log_mode"] for row in sent} == {"INCREMENTAL"}


@pytest.mark.heavy
def test_histograms_are_drawn_over_optimizer_steps(tiny_model: Path, tmp_path: Path) -> None:
    fit(tmp_path, tiny_model, [WeightSync(), PredictionTable()], logger=make_logger(tmp_path))
    wandb.finish()
    (part,) = offline_runs(tmp_path)
    for name, members in (("wm/rewards", 32), ("wm/completion_lengths", 32), ("val/rewards", 8)):
        drawn = {r["trainer/global_step"]: r for r in part.history if f"{name}.values" in r}
        assert list(drawn) == ([1, 2, 3, 4] if name.startswith("wm") else [2, 4])
        assert all(sum(row[f"{name}.values"]) == members for row in drawn.values())
    assert part.step_metrics["*"] == "trainer/global_step"
    assert all("trainer/global_step" in row for row in part.history)


@pytest.mark.heavy
def test_without_wandb_nothing_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    table = PredictionTable()
    fit(tmp_path, tiny_model, [WeightSync(), table])
    assert table.state_dict() == {"rows": [], "num_logged": 0}


def train(table: PredictionTable, first: int, last: int) -> None:
    """Tell the callback of steps, as the trainer does."""
    module = WorldModelGRPO(model="none")
    for step in range(first, last + 1):
        trainer: Any = SimpleNamespace(global_step=step)
        table.on_train_batch_end(trainer, module, {"batch": make_batch()}, None, 0)


def plan(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", num_steps)


@pytest.mark.parametrize("planned", [1, 30, 89, 90, 988])
def test_wandb_can_show_every_increment(planned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, planned)
    log, table = Log(monkeypatch, resumed=False), PredictionTable(rows_per_step=1)
    train(table, 1, planned)
    assert len(log.steps) <= 90
    trainer: Any = SimpleNamespace(global_step=planned)
    table.on_train_end(trainer, WorldModelGRPO(model="none"))
    assert [row[0] for row in log.rows] == list(range(1, planned + 1))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_resumed_run_has_every_row_once(resumed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned are 180 steps, of which three are sent at once; the checkpoint of step 7 holds an unsent row."""
    plan(monkeypatch, 180)
    first, table = Log(monkeypatch, resumed=False), PredictionTable(rows_per_step=1)
    train(table, 1, 7)
    assert first.steps == [3, 6]
    saved = table.state_dict()
    again = PredictionTable(rows_per_step=1)
    again.load_state_dict({**saved, "rows": list(saved["rows"])})
    second = Log(monkeypatch, resumed=resumed)
    train(again, 8, 9)
    assert [row[0] for row in second.rows] == ([7, 8, 9] if resumed else list(range(1, 10)))


def test_order_and_lengths_by_hand() -> None:
    groups = make_batch().groups
    lengths = [len(p.completion.token_ids) for p in by_member(g.predictions for g in groups)]
    assert lengths == [2, 6, 4, 8]
    uneven = (groups[0], replace(groups[1], predictions=groups[1].predictions[:1]))
    assert [len(p.completion.token_ids) for p in by_member(g.predictions for g in uneven)] == [2, 6, 4]
    assert distributions(groups) == {
        "rewards": [1.0, 0.0, 0.0, 0.0], "completion_lengths": [2, 4, 6, 8], "similarities": [0.9, 0.5, 0.1],
    }  # fmt: skip
    assert "similarities" not in distributions([replace(groups[1], predictions=groups[1].predictions[1:])])


def test_cells_are_capped() -> None:
    assert [clip("abcd", n) for n in (1, 3, 4, 5)] == ["…", "ab…", "abcd", "abcd"]


@pytest.mark.parametrize("name", ["rows_per_step", "max_chars"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"PredictionTable: {name} is 0; it must be at least 1"):
        PredictionTable(**{name: 0})
