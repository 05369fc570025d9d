"""What a logger is told of a run before its first number: whose it is, its config, and the state of the code."""

from __future__ import annotations

import subprocess
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger

from rwml_lightning.run import CONFIG_FILE, RunFolder


def introduce(logger: Logger, folder: RunFolder) -> None:
    """Give W&B the run folder's name, place and id where the config leaves them out, and every logger the config.

    With the folder's id a run that was killed and started again is one run there too.
    """
    if isinstance(logger, WandbLogger):
        # The folder is known only after the logger was made, so these are its arguments for wandb.init, not yet called.
        # The command line hands on wandb.init's own defaults, so that even Lightning's resume="allow" has become None.
        arguments = logger._wandb_init
        for key, value in {"name": folder.path.name, "id": folder.id, "resume": "allow"}.items():
            arguments[key] = arguments[key] or value
        if arguments["dir"] in (None, "."):
            arguments["dir"] = str(folder.path)
    config = yaml.safe_load((folder.path / CONFIG_FILE).read_text())
    logger.log_hyperparams({**config, "git": git_state()})


def git_state() -> dict[str, Any]:
    """``commit`` of the current folder's repository and whether tracked files differ from it (``dirty``); else empty."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"commit": commit, "dirty": bool(dirty)}
