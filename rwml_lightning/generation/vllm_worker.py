"""What runs inside vLLM's worker processes; vLLM adds these methods to its own worker class by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import psutil
from safetensors import safe_open
from torch import Tensor, nn

from rwml_lightning.functional import combine_digests, digesting
from rwml_lightning.models import load_skeleton
from rwml_lightning.weights import checkpoint_tensors

PARENT_CHECK_S = 2.0


class WorkerExtension:
    """Methods that the generator calls on every worker."""

    reload_weights: Callable[..., None]  # vLLM's own, as the next
    get_model: Callable[[], Any]

    def load_weight_files(self, folder: str, paths: list[str]) -> str:
        """Replace the weights by those in safetensors files; each worker takes its own shard of every tensor.

        Args:
            folder: Folder of the model; it says how its checkpoint spells the tensors, which is what vLLM's loaders know.
            paths: Files of tensors as the model in transformers spells them.

        Returns:
            Digest of the tensors that vLLM's loader took.
        """
        digests: list[int] = []

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    for name in sorted(file.keys()):  # so that a layer's tensors stand together
                        yield name, file.get_tensor(name)

        # Not model.load_weights: CPU kernels keep packed copies, which only a reload rebuilds.
        taken = digesting(tensors(), digests)
        forget_expert_kernels(self.get_model())
        self.reload_weights(weights_iterator=checkpoint_tensors(_skeleton(folder), taken))
        renew_tied_head(self.get_model())
        return combine_digests(digests)

    def end_with(self, trainer_pid: int, engine_pid: int) -> None:
        """End this engine when the trainer is gone: vLLM's workers watch their engine, the engine watches nobody."""

        def watch() -> None:
            while psutil.pid_exists(trainer_pid):
                time.sleep(PARENT_CHECK_S)
            os.kill(engine_pid, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@cache
def _skeleton(folder: str) -> nn.Module:
    return load_skeleton(folder)


def forget_expert_kernels(model: nn.Module) -> None:
    """Let a reload build the kernels of experts on a CPU anew, as after loading.

    vLLM packs the experts' weights only where there is no kernel yet. With one, a reload writes the plain weights into
    the packed storage, and all later results are wrong. On a GPU nothing is packed by the kernel, and captured graphs
    need it.
    """
    if next(model.parameters()).is_cpu:
        for layer in model.modules():
            method: Any = getattr(layer, "quant_method", None)
            if hasattr(method, "moe_kernel"):
                method.moe_kernel = None


def renew_tied_head(model: Any) -> None:
    """Let a tied output head see new embeddings.

    A checkpoint has no weight of its own for it, so a reload passes it by; but on a CPU it keeps a packed copy.
    """
    head = getattr(model, "lm_head", None)
    embeddings = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embeddings is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head is not embeddings:
        head.tie_weights(embeddings)
        head.quant_method.process_weights_after_loading(head)
