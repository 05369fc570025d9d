"""Readers of offline W&B files: protocol buffers in the record format of LevelDB's log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

_HEADER, _BLOCK, _FRAME = 7, 32 * 1024, 7
_LAST_OR_ONLY = (1, 4)
_PATIENCE_S = 10.0


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file ``run-<id>.wandb`` in the order of writing."""
    data, place, content = path.read_bytes(), _HEADER, b""
    while place + _FRAME <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _FRAME:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        content += data[place + _FRAME : place + _FRAME + length]
        place += _FRAME + length
        if kind in _LAST_OR_ONLY:
            yield pb.Record.FromString(content)
            content = b""


class OfflineRun:
    """The part of a run that one process wrote.

    Args:
        folder: Folder ``offline-run-<time>-<id>``.
    """

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("run-*.wandb")
        self.folder = folder
        until = time.monotonic() + _PATIENCE_S
        # W&B's own process may not have started or finished writing; a killed run has no end
        while not self._has_ended(records := list(read_records(file))) and time.monotonic() < until:
            time.sleep(0.1)
        self.records = records

    @staticmethod
    def _has_ended(records: list[Any]) -> bool:
        return bool(records) and records[-1].WhichOneof("record_type") == "exit"

    @property
    def run(self) -> Any:
        """Id, name, project and git state."""
        return next(r.run for r in self.records if r.WhichOneof("record_type") == "run")

    @property
    def config(self) -> dict[str, Any]:
        updates = [u for r in self.records for u in (*r.run.config.update, *r.config.update)]
        return {u.key or ".".join(u.nested_key): json.loads(u.value_json) for u in updates}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Logged values, one dictionary per call; parts of an object have dotted names."""
        rows = [r.history.item for r in self.records if r.WhichOneof("record_type") == "history"]
        return [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in row} for row in rows]

    @property
    def step_metrics(self) -> dict[str, str]:
        """The x axis of each metric or pattern of metrics."""
        return {
            r.metric.glob_name or r.metric.name: r.metric.step_metric
            for r in self.records
            if r.HasField("metric")
        }

    def increments(self, name: str) -> list[dict[str, Any]]:
        """Return the increments of a table in order, each with ``columns`` and ``data``."""
        paths = [row[f"{name}.path"] for row in self.history if f"{name}.path" in row]
        return [json.loads((self.folder / "files" / path).read_text()) for path in paths]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Read all parts of runs below ``folder``, oldest first."""
    return [OfflineRun(part) for part in sorted(folder.glob("wandb/offline-run-*"))]
