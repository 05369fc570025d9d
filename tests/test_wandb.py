"""A run that is killed and started again is one run in W&B, complete, and no secret of the environment is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from rwml_lightning.evaluation import Result
from rwml_lightning.loggers import git_state, log_comparison, start_logger
from rwml_lightning.run import Run, open_run_folder
from support.runs import NUM_STEPS, metrics_of, write_resumable_config
from support.wandb_files import offline_runs

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-not-to-be-written",
    "HF_TOKEN": "hf_not-to-be-written",
}


def run_fit(folder: Path, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    environment = {**os.environ, **SECRETS, **places}
    environment |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_SERVICE", None)  # a service that another test started would outlive the killed run
    command = [sys.executable, "-m", "rwml_lightning", "fit", "--config", str(config), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_run_without_a_secret(tiny_model: Path, tmp_path: Path) -> None:
    config = write_resumable_config(tmp_path, tiny_model, "r", step=6)  # its last checkpoint is of step 3
    logger = ("--trainer.logger", "WandbLogger", "--trainer.logger.project", "test")
    assert run_fit(tmp_path, config, *logger).returncode == -9
    again = run_fit(tmp_path, config, *logger)
    assert again.returncode == 0, again.stderr
    folder = tmp_path / "runs" / "r"
    first, second = offline_runs(folder)

    for part in (first, second):
        assert (part.run.run_id, part.run.display_name, part.run.project) == (
            (folder / ".id").read_text(), "r", "test",
        )  # fmt: skip
        assert part.run.resume
        written = yaml.safe_load((folder / "config.yaml").read_text())
        assert {key: part.config[key] for key in written} == written
        assert part.config["git"] == git_state()
        assert part.step_metrics["*"] == "trainer/global_step"

    def steps(part: Any, name: str) -> list[int]:
        return [row["trainer/global_step"] for row in part.history if name in row]

    # W&B may lose the last of what it was told before the kill: steps after the checkpoint, which are repeated.
    before = steps(first, "wm/reward")
    assert before == [1, 2, 3, 4, 5][: max(len(before), 3)]
    assert steps(second, "wm/reward") == [4, 5, 6, 7, 8]
    assert steps(second, "wm/rewards.values") == [4, 5, 6, 7, 8]
    logged = {
        (row["trainer/global_step"], name): value
        for part in (first, second) for row in part.history for name, value in row.items()
    }  # fmt: skip
    for stage, step, name, value in metrics_of(folder):
        if stage == "wm_grpo":
            assert logged[step, name] == pytest.approx(value), (step, name)

    table = [row for increment in second.increments("predictions") for row in increment["data"]]
    assert {(row[0], row[2]) for row in table} == {
        *((step, "train") for step in range(1, NUM_STEPS + 1)), (0, "validation"), (NUM_STEPS, "validation"),
    }  # fmt: skip
    assert len({str(row) for row in table}) > NUM_STEPS

    for file in filter(Path.is_file, tmp_path.rglob("*")):
        content = file.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], file


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_state_of_the_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == {}
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "-m", "x")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("2\n")
    assert git_state() == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == {}


class Untold(WandbLogger):
    """Starts no run."""

    experiment: Any = SimpleNamespace(config={})


def test_the_run_folder_fills_in_what_a_config_leaves_out(tmp_path: Path) -> None:
    folder = open_run_folder(Run("r", str(tmp_path)), "a: 1\n")
    logger = Untold(project="p", resume=None)
    start_logger(logger, folder)
    assert {key: logger._wandb_init[key] for key in ("name", "id", "dir", "resume")} == {
        "name": "r", "id": folder.id, "dir": str(tmp_path / "r"), "resume": "allow",
    }  # fmt: skip
    assert logger.experiment.config["a"] == 1
    given = Untold(name="mine", id="my-id", resume="must", save_dir=tmp_path)
    start_logger(given, folder)
    assert [given._wandb_init[key] for key in ("name", "id", "dir", "resume")] == [
        "mine", "my-id", str(tmp_path), "must",
    ]  # fmt: skip


def test_every_logger_gets_the_config(tmp_path: Path) -> None:
    folder = open_run_folder(Run("r", str(tmp_path / "runs")), "a: 1\n")
    logger = CSVLogger(tmp_path)
    start_logger(logger, folder)
    assert logger.experiment.hparams["a"] == 1
    assert set(logger.experiment.hparams) == {"a", "git"}


def test_a_comparison_names_any_folder(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    log_comparison(logger, {"models/\udcff": Result("all", 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)})
    logger.finalize("success")
    (file,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    assert "models/\ufffd/similarity" in file.read_text()


def test_a_run_has_one_id_and_a_sweep_agents_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    run = Run("r", str(tmp_path))
    first = open_run_folder(run, "a: 1\n")
    assert open_run_folder(run, "a: 1\n").id == first.id
    assert open_run_folder(run, "a: 2\n").id != first.id
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    assert open_run_folder(run, "a: 1\n").id == first.id
    assert open_run_folder(run, "a: 3\n").id == "agents"
