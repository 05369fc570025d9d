"""Transfer weights to other processes of this machine through files in shared memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rwml_lightning.weights import by_layer

SHARED_MEMORY = Path("/dev/shm")
FILE_BYTES = 1 << 30


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


def _write(tensors: dict[str, Tensor], size: int, files: ExitStack) -> str:
    in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    file = files.enter_context(
        tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed with `files`)
            prefix="rwml-weights-", suffix=".safetensors", dir=SHARED_MEMORY if in_memory else None
        )
    )
    save_file(tensors, file.name)
    return file.name
