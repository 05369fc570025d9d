"""A control is one override away from any config, and its name stands wherever the run is shown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from rwml_lightning.cli import main, name_control
from support.runs import write_config


@pytest.mark.heavy
def test_a_controlled_run_is_named_after_its_control(tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_model, run={"name": "tiny"})
    main(["fit", "--config", str(config), "--control", "coin"])
    folder = tmp_path / "runs" / "tiny-coin"
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["control"], kept["run"]["name"]) == ("coin", "tiny-coin")
    with (folder / "metrics.csv").open(newline="") as file:
        assert "wm/true_reward" in {row["name"] for row in csv.DictReader(file)}
    main(["fit", "--config", str(folder / "config.yaml")])  # the run's own config names it once
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-coin"]


@pytest.mark.heavy
def test_labels_cannot_be_controlled(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_model, model={"class_path": "rwml_lightning.modules.WorldModelSFT"})
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config), "--control", "permuted", "--data.predictions.reward", "null"])
    assert stopped.value.code == 2
    assert "control is 'permuted', which replaces rewards, but WorldModelSFT learns from labels" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "named"), [(None, "r-coin"), ("mine", "mine-coin"), ("mine-coin", "mine-coin")]
)
def test_loggers_are_named_after_the_control(given: str | None, named: str) -> None:
    wandb = Namespace(init_args=Namespace(name=given))
    for loggers in (wandb, [Namespace(init_args=Namespace()), wandb]):
        config = Namespace(
            control="coin",
            run=Namespace(name="r"),
            trainer=Namespace(logger=loggers),
            data=Namespace(predictions=Namespace(control="none")),
        )
        name_control(config)
        assert (config.run.name, wandb.init_args.name) == ("r-coin", named)
        assert config.data.predictions.control == "coin"


def test_a_control_needs_predictions() -> None:
    config = Namespace(control="coin", run=Namespace(name="r"), data=Namespace(predictions=None))
    with pytest.raises(ValueError, match=r"control is 'coin', .* data\.predictions is not set"):
        name_control(config)


@pytest.mark.parametrize("logger", [False, None])
def test_without_a_control_or_a_logger_names_stay(logger: Any) -> None:
    config = Namespace(control="none", run=Namespace(name="r"), trainer=Namespace(logger=logger))
    name_control(config)
    assert config.run.name == "r"
