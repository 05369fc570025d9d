"""Lightning's own callbacks on any metric, from a config through the real command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rwml_lightning.cli import main
from support.runs import metrics_of, write_config

STEPS = 8  # two passes of eight transitions a step


def train(folder: Path, model: Path, name: str, **arguments: Any) -> Path:
    """Run ``fit`` with one of Lightning's callbacks, a validation after every second batch; give the run folder."""
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}
    trainer = {"max_steps": STEPS, "val_check_interval": 2, "callbacks": [callback]}
    main(["fit", "--config", str(write_config(folder, model, trainer=trainer))])
    return folder / "runs" / "r"


def values(run: Path, wanted: str) -> dict[int, float]:
    return {step: value for _, step, name, value in metrics_of(run) if name == wanted}


@pytest.mark.heavy
def test_the_checkpoint_of_the_best_step_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    run = train(
        tmp_path, tiny_model, "ModelCheckpoint",
        dirpath=str(kept), filename="{step}", monitor="wm/reward", mode="max", every_n_train_steps=1,
    )  # fmt: skip
    rewards = values(run, "wm/reward")
    assert list(rewards) == list(range(1, STEPS + 1))
    (file,) = kept.iterdir()
    saved = torch.load(file, weights_only=True)
    best = max(rewards.values())
    assert rewards[saved["global_step"]] == pytest.approx(best)
    assert best > min(rewards.values())


@pytest.mark.heavy
@pytest.mark.parametrize("monitor", ["val/accuracy", "wm/reward"])
def test_a_run_is_stopped_early(tiny_model: Path, tmp_path: Path, monitor: str) -> None:
    """Nothing rises by 2, so that the second validation in a row without progress ends the run."""
    run = train(tmp_path, tiny_model, "EarlyStopping", monitor=monitor, mode="max", min_delta=2.0, patience=2)
    assert max(values(run, "wm/reward")) == 6  # validations after 2 (the first), 4 and 6
    assert max(values(run, "val/accuracy")) == 6
    assert (run / "export").is_dir()  # the stage is at its end


@pytest.mark.heavy
def test_a_run_that_makes_progress_is_not_stopped(tiny_model: Path, tmp_path: Path) -> None:
    run = train(tmp_path, tiny_model, "EarlyStopping", monitor="wm/reward", mode="max", min_delta=-2.0)
    assert max(values(run, "wm/reward")) == STEPS


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("EarlyStopping", {}),
        ("ModelCheckpoint", {"every_n_train_steps": 1, "filename": "{step}"}),
    ],
)
def test_a_metric_that_does_not_exist_is_said_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(tmp_path, tiny_model, name, monitor="wm/rewards", mode="max", **arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = (number for number, line in enumerate(lines) if line.startswith("error: "))
    assert error == len(lines) - 1
    assert "wm/rewards" in lines[error]
    assert "wm/reward" in lines[error].replace("wm/rewards", "")  # what there is instead
