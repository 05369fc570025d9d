"""What runs inside vLLM's worker processes; vLLM adds these methods to its own worker class by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
from safetensors import safe_open
from torch import Tensor

PARENT_CHECK_S = 2.0


class WorkerExtension:
    """Methods that the generator calls on every worker."""

    reload_weights: Callable[..., None]  # vLLM's own

    def load_weight_files(self, paths: list[str]) -> None:
        """Replace the weights by those in safetensors files; each worker takes its own shard of every tensor."""

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        yield name, file.get_tensor(name)

        # Not model.load_weights: CPU kernels keep packed copies, which only a reload rebuilds.
        self.reload_weights(weights_iterator=tensors())

    def end_with(self, trainer_pid: int, engine_pid: int) -> None:
        """End this engine when the trainer is gone: vLLM's workers watch their engine, the engine watches nobody."""

        def watch() -> None:
            while psutil.pid_exists(trainer_pid):
                time.sleep(PARENT_CHECK_S)
            os.kill(engine_pid, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
