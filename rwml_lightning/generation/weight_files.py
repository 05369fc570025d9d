"""Transfer weights to other processes of this machine through files in shared memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rwml_lightning.weights import by_layer

SHARED_MEMORY = Path("/dev/shm")
FILE_BYTES = 1 << 30
ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "rwml-weights-"


def write_weight_files(
    named_tensors: Iterable[tuple[str, Tensor]], files: ExitStack, file_bytes: int = FILE_BYTES
) -> list[str]:
    """Write tensors to safetensors files, which are deleted when ``files`` is closed.

    Tensors are read from the iterable one at a time, so that it can gather or merge them lazily. Memory holds at most
    the tensors of one file plus one layer. A layer is never split between files.

    Args:
        named_tensors: Names and values; tensors may share memory (tied embeddings).
        files: Exit stack that deletes the files when it is closed.
        file_bytes: Size in bytes above which the next layer starts a new file.

    Returns:
        Paths of the files. They are in shared memory, or in the folder for temporary files if there is no shared memory
        or not enough (containers often have 64 MiB).
    """
    paths: list[str] = []
    pending: dict[str, Tensor] = {}
    size = 0
    for layer in by_layer(named_tensors):
        for name, tensor in layer:
            # A copy on the CPU. It also separates tensors that share memory, which safetensors would reject.
            pending[name] = tensor.detach().cpu().contiguous().clone()
            size += pending[name].nbytes
        if size >= file_bytes:
            paths.append(_write(pending, size, files))
            pending, size = {}, 0
    if pending:
        paths.append(_write(pending, size, files))
    return paths


def write_adapter_folder(
    named_tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], files: ExitStack
) -> str:
    """Write adapters as PEFT does to a folder, which is deleted when ``files`` is closed.

    Args:
        named_tensors: Names as in PEFT's files, and values.
        config: Content of ``adapter_config.json``.
        files: Exit stack that deletes the folder when it is closed.

    Returns:
        Path of the folder, in shared memory as in :func:`write_weight_files`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
    size = sum(tensor.nbytes for tensor in tensors.values())
    folder = files.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_parent(size)))
    save_file(tensors, Path(folder) / ADAPTER_FILE)
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _write(tensors: dict[str, Tensor], size: int, files: ExitStack) -> str:
    file = files.enter_context(
        tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed with `files`)
            prefix=_PREFIX, suffix=".safetensors", dir=_parent(size)
        )
    )
    save_file(tensors, file.name)
    return file.name


def _parent(size: int) -> Path | None:
    in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return SHARED_MEMORY if in_memory else None
