"""Metrics are complete before anybody hears of them: the order of callbacks decides nothing, and loggers get each step once."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rwml_callbacks import CapabilityProbe, RewardLogger, WeightChange, WeightSync

from rwml_lightning.cli import default_callbacks
from rwml_lightning.run import RunFolder
from rwml_lightning.trace import TraceReader
from support.callback_runs import fit
from support.runs import rows_of


class Received(CSVLogger):
    """Lightning's CSV logger, which keeps each call too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")
        self.calls: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        assert step is not None
        self.calls.append((step, dict(metrics)))
        super().log_metrics(metrics, step)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {n: value for n, value in metrics.items() if not n.startswith(("time/", "throughput/", "memory/"))}


def recorded(folder: Path, model: Path, order: random.Random | None) -> dict[str, Any]:
    """What is recorded of a short run of all default callbacks and two analyses, in an order of its own."""
    torch.manual_seed(0)
    home = RunFolder(folder / "run")
    home.path.mkdir(parents=True)
    logger = Received(folder / "logged")
    callbacks: list[L.Callback] = [
        *default_callbacks([], home, 2),
        WeightChange(every_n_steps=2),
        CapabilityProbe(every_n_steps=2, max_tokens=4),
    ]
    if order is not None:
        order.shuffle(callbacks)
    fit(folder, model, callbacks, logger=logger, learning_rate=1e-3)
    written = [(*row[:3], round(row[3], 5)) for row in rows_of(home.metrics) if timeless({row[2]: row[3]})]
    with TraceReader(home.trace) as reader:
        names = sorted(timeless(dict.fromkeys(reader.metric_names("wm_grpo"), 0.0)))
        series = {
            name: [(step, round(value, 5)) for step, value in points]
            for name, points in reader.metrics("wm_grpo", names).items()
        }
        steps = [step.step for step in reader.steps("wm_grpo")]
        evaluations = sorted((e.step, e.name) for e in reader.evaluations())
    with (folder / "logged" / "metrics.csv").open(newline="") as file:
        kept = [{n: round(float(v), 5) for n, v in row.items() if v} for row in csv.DictReader(file)]
    return {
        "names": sorted(sorted(row) for row in kept),
        "kept": sorted(sorted(timeless(row).items()) for row in kept),
        "written": sorted(written),
        "steps": steps,
        "series": series,
        "evaluations": evaluations,
        "checkpoints": sorted(file.name for file in home.checkpoints.iterdir()),
    }


@pytest.mark.heavy
def test_the_order_of_callbacks_decides_nothing(tiny_model: Path, tmp_path: Path) -> None:
    expected = recorded(tmp_path / "given", tiny_model, None)
    assert {"wm/reward", "train/sync_gap", "train/loss"} <= expected["series"].keys()
    assert expected["steps"] == [1, 2, 3, 4]
    assert {"change/all", "probe/perplexity", "val/accuracy"} <= {
        name for _, _, name, _ in expected["written"]
    }
    for seed in range(3):
        assert recorded(tmp_path / str(seed), tiny_model, random.Random(seed)) == expected


@pytest.mark.heavy
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_logger_gets_each_steps_metrics_once_at_the_optimizer_step(
    tiny_model: Path, tmp_path: Path, num_iterations: int
) -> None:
    """Four batches, and a validation after the second and the fourth; beside it is what the CSV file of the run holds."""
    logger = Received(tmp_path / "logged")
    fit(
        tmp_path,
        tiny_model,
        [WeightSync(), RewardLogger(tmp_path / "metrics.csv")],
        logger=logger,
        num_iterations=num_iterations,
        max_staleness=num_iterations,
    )
    steps = [number * num_iterations for number in (1, 2, 2, 3, 4, 4)]
    assert [step for step, _ in logger.calls] == steps
    kinds = ["wm/reward" if "wm/reward" in metrics else "val/accuracy" for _, metrics in logger.calls]
    assert kinds == 2 * ["wm/reward", "wm/reward", "val/accuracy"]
    assert not any("wm/reward" in metrics and "val/accuracy" in metrics for _, metrics in logger.calls)
    assert not any("epoch" in metrics for _, metrics in logger.calls)
    rows: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for _, step, name, value in rows_of(tmp_path / "metrics.csv"):
        assert name not in rows[step]
        rows[step][name] = value
    given: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for step, metrics in logger.calls:
        given[step].update(metrics)
    assert given == rows


@pytest.mark.heavy
def test_a_logger_gets_nothing_of_a_step_that_the_step_did_not_have(tiny_model: Path, tmp_path: Path) -> None:
    class Now(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                pl_module.record({"own/now": 5.0})

    logger = Received(tmp_path / "logged")
    fit(tmp_path, tiny_model, [WeightSync(), Now()], logger=logger)
    assert [(step, m["own/now"]) for step, m in logger.calls if "own/now" in m] == [(2, 5.0)]


@pytest.mark.heavy
@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_steps_between_are_not_logged_and_validations_always(
    tiny_model: Path, tmp_path: Path, every: int, steps: list[int]
) -> None:
    logger = Received(tmp_path / "logged")
    path = tmp_path / "metrics.csv"
    fit(tmp_path, tiny_model, [WeightSync(), RewardLogger(path)], logger=logger, log_every_n_steps=every)
    assert [step for step, metrics in logger.calls if "wm/reward" in metrics] == steps
    assert [step for step, metrics in logger.calls if "val/accuracy" in metrics] == [2, 4]
    assert [step for _, step, name, _ in rows_of(path) if name == "wm/reward"] == [1, 2, 3, 4]
