"""Files and folders that are complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwml_lightning.printable import well_formed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder beside ``path``, and rename it to ``path`` at the end of the block.

    Readers find the old content or the new content, also after a kill or a power cut. If the block raises, ``path`` stays
    as it was.

    Args:
        path: File or folder to write. Its parent folder is created. A folder must not exist yet.

    Yields:
        Path to write to. It is hidden, on the same file system as ``path``, and differs between processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        for file in (partial, *partial.rglob("*"), path.parent):
            _flush(file)
        partial.replace(path)
        _flush(path.parent)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to a file atomically. NaN is refused, and a lone surrogate is replaced."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(well_formed(text) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
