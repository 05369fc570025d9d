"""A real vLLM server on the CPU."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from rwml_lightning.generation.servers.check import Need
from support.http import free_port

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
START_SECONDS = 420
KV_BYTES = "100000000"


@contextmanager
def vllm_server(model: Path, name: str, log: Path, *options: str) -> Iterator[str]:
    """Serve a model folder under a name; yield the address up to and including ``/v1``."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", *options,
    ]  # fmt: skip
    process = start(command, log)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        kill(process)


def start_for_trainer(
    model: Path, url: str, log: Path, max_model_len: int, cores: str = "0"
) -> subprocess.Popen[bytes]:
    """Start a server with the command that an error message of the trainer gives."""
    words = shlex.split(Need(str(model), max_model_len).command(url, on_cpu=True))
    settings = [word for word in words if "=" in word and word.partition("=")[0].isupper()]
    command = [
        sys.executable,
        *words[len(settings) + 1 :],
        "--enforce-eager",
        "--max-num-seqs",
        "16",
        "--kv-cache-memory-bytes",
        KV_BYTES,
    ]
    own = dict(setting.split("=", 1) for setting in settings)
    return start(command, log, {**own, "VLLM_CPU_OMP_THREADS_BIND": cores})


def start(command: list[str], log: Path, settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own."""
    environment = {**os.environ, **SETTINGS, **(settings or {})}
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server responds."""
    for _ in range(START_SECONDS):
        assert process.poll() is None, log.read_text()[-3000:]
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        time.sleep(1)
    raise AssertionError(f"not there after {START_SECONDS} s: {log.read_text()[-3000:]}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and all of its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
