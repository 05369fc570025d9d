"""Search for the store of a run."""

from __future__ import annotations

from pathlib import Path

from rwml_lightning.trace.tables import TraceError

TRACE_NAME = "trace.db"


def newest_run(root: str | Path = "runs") -> Path:
    """Return the folder of the run under ``root`` that was written last.

    Raises:
        TraceError: ``root`` holds no run.
    """

    def last_write(folder: Path) -> float:
        # While the trainer runs, commits go to the write-ahead log.
        return max(file.stat().st_mtime for file in folder.glob(f"{TRACE_NAME}*") if not file.match("*-shm"))

    folders = [file.parent for file in Path(root).glob(f"*/{TRACE_NAME}")]
    if not folders:
        raise TraceError(f"no run under {root}/ yet; start one with `make quickstart`, or name a run folder")
    return max(folders, key=last_write)


def trace_path(run: str | Path | None = None, root: str | Path = "runs") -> Path:
    """Return the path of a run's ``trace.db``.

    Args:
        run: Run folder or ``trace.db`` file; ``None`` selects the newest run.
        root: Folder of all runs.

    Raises:
        TraceError: The file does not exist.
    """
    path = newest_run(root) if run is None else Path(run)
    if path.is_dir():
        path /= TRACE_NAME
    if not path.is_file():
        raise TraceError(f"{path}: no such file; name a run folder or its trace.db")
    return path
