"""Run name, config, git state and model comparisons for loggers."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger

from rwml_lightning.evaluation import MEASURES, Result
from rwml_lightning.printable import well_formed
from rwml_lightning.run import CONFIG_FILE, RunFolder


def start_logger(logger: Logger, folder: RunFolder) -> None:
    """Give W&B the run folder's name, path and id, and give each logger the config, before its first metrics.

    With the folder's id, a run that was killed and restarted is one run in W&B too.
    """
    name_run(logger, folder.path, folder.id)
    config = yaml.safe_load((folder.path / CONFIG_FILE).read_text())
    logger.log_hyperparams({**config, "git": git_state()})


def name_run(logger: Logger, path: Path, run_id: str | None = None) -> None:
    """Give W&B the name and path of a folder and the id of its run, unless the config sets them."""
    if not isinstance(logger, WandbLogger):
        return
    # The logger exists before the folder is known, so this edits its arguments for wandb.init, which is not called yet.
    # The command line passes wandb.init's own defaults, so Lightning's default resume="allow" has become None.
    arguments = logger._wandb_init
    for key, value in {"name": path.name, "id": run_id, "resume": "allow"}.items():
        arguments[key] = arguments[key] or value
    if arguments["dir"] in (None, "."):
        arguments["dir"] = str(path)


def log_comparison(logger: Logger, results: Mapping[str, Result]) -> None:
    """Log the results of several models: to W&B as the table ``models``, else as ``<model>/<measure>``."""
    results = {well_formed(model): result for model, result in results.items()}
    measures = [name for name in MEASURES if all(getattr(r, name) is not None for r in results.values())]
    if isinstance(logger, WandbLogger):
        bounds = [f"{name}_{bound}" for name in measures for bound in ("low", "high")]
        rows = [
            [model, result.num_transitions, *(getattr(result, name) for name in measures),
             *(bound for name in measures for bound in result.intervals.get(name, (None, None)))]
            for model, result in results.items()
        ]  # fmt: skip
        logger.log_table("models", columns=["model", "transitions", *measures, *bounds], data=rows)
    else:
        values = {f"{m}/{name}": getattr(r, name) for m, r in results.items() for name in measures}
        logger.log_metrics(values)


def git_state() -> dict[str, Any]:
    """Return the ``commit`` of the current repository, and as ``dirty`` whether tracked files differ from it; else {}."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # git is not installed, or the folder is in no repository
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"commit": commit, "dirty": bool(dirty)}
