"""The run folder, which holds all files of a run. A second run of the same config finds the same folder."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rwml_lightning.printable import well_formed

CONFIG_FILE = "config.yaml"
_FINGERPRINT_FILE = ".fingerprint"
_ID_FILE = ".id"


@dataclass(frozen=True)
class Run:
    """Name and folder of a run.

    Args:
        name: Name of the folder in ``root``. If a run with another config has this name, the new one is named ``name-2``,
            and so on.
        root: Folder of all runs.
        resume: Whether to resume the run with this name and config. Finished stages are not repeated, and an interrupted
            stage resumes at its last checkpoint. ``false`` always makes a new folder.
    """

    name: str = "run"
    root: str = "runs"
    resume: bool = True


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of one run."""

    path: Path

    @property
    def id(self) -> str:
        """Id of the run in W&B: the id from the sweep agent if one started the run, else a random id."""
        return (self.path / _ID_FILE).read_text()

    @property
    def trace(self) -> Path:
        return self.path / "trace.db"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def warm_up(self) -> Path:
        return self.path / "warm_up"

    @property
    def last_checkpoint(self) -> Path | None:
        """Newest checkpoint, from which the run resumes."""
        found = sorted(self.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        return found[-1] if found else None

    @property
    def finished(self) -> bool:
        """Whether training is complete and the model is exported."""
        return self.export.is_dir()


def open_run_folder(run: Run, config: str) -> RunFolder:
    """Find the folder of the run with this name and config, or make a new one. Nothing is overwritten.

    Args:
        run: Name and folder of the run.
        config: The whole config as text. Two runs with the same text are the same run.
    """
    config = well_formed(config)
    fingerprint = hashlib.sha256(config.encode()).hexdigest()
    for number in count(1):
        path = Path(run.root) / (run.name if number == 1 else f"{run.name}-{number}")
        fingerprint_file = path / _FINGERPRINT_FILE
        if run.resume and fingerprint_file.is_file() and fingerprint_file.read_text() == fingerprint:
            return RunFolder(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        (path / CONFIG_FILE).write_text(config)
        (path / _ID_FILE).write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        fingerprint_file.write_text(fingerprint)
        return RunFolder(path)
    raise AssertionError("unreachable")
