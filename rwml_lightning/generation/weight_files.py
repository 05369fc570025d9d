"""Handing weights to other processes of this machine through files in shared memory."""

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

    Tensors are taken from the iterable one by one, so that a caller may gather or merge them as they are asked for;
    at most one file's worth and a layer are held at a time, and a layer is never split between files.

    Args:
        named_tensors: Names and values; may share memory (tied embeddings).
        files: Owns the files.
        file_bytes: A file is closed when it holds this much.

    Returns:
        Paths of the files: in shared memory, or in the folder for temporary files where there is none or no room
        (containers often have 64 MiB).
    """
    paths: list[str] = []
    held: dict[str, Tensor] = {}
    size = 0
    for layer in by_layer(named_tensors):
        for name, tensor in layer:
            # A copy on the CPU, which also separates tensors that share memory: safetensors would refuse those.
            held[name] = tensor.detach().cpu().contiguous().clone()
            size += held[name].nbytes
        if size >= file_bytes:
            paths.append(_write(held, size, files))
            held, size = {}, 0
    if held:
        paths.append(_write(held, size, files))
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
