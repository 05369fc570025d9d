"""The run folder: where everything of a run lies, found again by a second run of the same config."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rwml_lightning.printable import well_formed

CONFIG_FILE = "config.yaml"
_FINGERPRINT_FILE = ".fingerprint"
_ID_FILE = ".id"


@dataclass(frozen=True)
class Run:
    """Which run this is.

    Args:
        name: Folder below ``root``. A run of that name with another config is left alone: this one is then called
            ``name-2``, and so on.
        root: Folder of all runs.
        resume: Go on with the run of this name and config: finished stages are not repeated, an interrupted one starts
            at its last checkpoint. ``false`` always begins a new folder.
    """

    name: str = "run"
    root: str = "runs"
    resume: bool = True


@dataclass(frozen=True)
class RunFolder:
    """Paths within one run's folder."""

    path: Path

    @property
    def id(self) -> str:
        """Under which W&B knows the run: a sweep agent's where one started it, else a random one."""
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
        """Newest checkpoint, to resume from."""
        found = sorted(self.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        return found[-1] if found else None

    @property
    def finished(self) -> bool:
        """Whether training came to its end and the result was exported."""
        return self.export.is_dir()


def write_json(path: Path, value: Any) -> None:
    """Write a file that holds either all of ``value`` or what it held before; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, allow_nan=False)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text + "\n")
    partial.replace(path)


def open_run_folder(run: Run, config: str) -> RunFolder:
    """Find the folder of the run with this name and config, or make a new one; nothing is ever overwritten.

    Args:
        run: Name and place.
        config: The whole config as text; two runs are the same when theirs are.
    """
    config = well_formed(config)
    fingerprint = hashlib.sha256(config.encode()).hexdigest()
    for number in count(1):
        path = Path(run.root) / (run.name if number == 1 else f"{run.name}-{number}")
        mark = path / _FINGERPRINT_FILE
        if run.resume and mark.is_file() and mark.read_text() == fingerprint:
            return RunFolder(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        (path / CONFIG_FILE).write_text(config)
        (path / _ID_FILE).write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        mark.write_text(fingerprint)
        return RunFolder(path)
    raise AssertionError("unreachable")
