"""Code that runs inside vLLM's worker processes. vLLM adds the methods of ``WorkerExtension`` to its worker class."""

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
    """Adds the methods to vLLM's workers that the generator calls on every worker."""

    reload_weights: Callable[..., None]  # a method of vLLM's worker, like the next
    get_model: Callable[[], Any]

    def load_weight_files(self, folder: str, paths: list[str]) -> str:
        """Replace the weights by the tensors in safetensors files; each worker loads its shard of every tensor.

        Args:
            folder: Folder of the model. It defines the tensor names of the checkpoint, which vLLM's loaders expect.
            paths: Safetensors files; tensor names are as in transformers.

        Returns:
            Digest of the tensors that vLLM's loader has read.
        """
        digests: list[int] = []

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    for name in sorted(file.keys()):  # so that the tensors of a layer are consecutive
                        yield name, file.get_tensor(name)

        # Not model.load_weights: CPU kernels have packed copies of the weights, which only reload_weights rebuilds.
        digested = digesting(tensors(), digests)
        forget_expert_kernels(self.get_model())
        self.reload_weights(weights_iterator=checkpoint_tensors(model_skeleton(folder), digested))
        renew_tied_head(self.get_model())
        return combine_digests(digests)

    def end_with(self, trainer_pid: int, engine_pid: int) -> None:
        """End this engine when the trainer has ended. vLLM's workers watch their engine, but the engine watches nothing."""

        def watch() -> None:
            while psutil.pid_exists(trainer_pid):
                time.sleep(PARENT_CHECK_S)
            os.kill(engine_pid, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@cache
def model_skeleton(folder: str) -> nn.Module:
    """Return the model of a folder without values; it is loaded once."""
    return load_skeleton(folder)


def forget_expert_kernels(model: nn.Module) -> None:
    """Remove the expert kernels of a model on a CPU, so that the next reload builds them again.

    vLLM packs the weights of experts only if they have no kernel. If a kernel exists, a reload writes the unpacked
    weights into the packed storage, and all later results are wrong. On a GPU the kernel packs nothing, and captured
    CUDA graphs need it.
    """
    if next(model.parameters()).is_cpu:
        for layer in model.modules():
            method: Any = getattr(layer, "quant_method", None)
            if hasattr(method, "moe_kernel"):
                method.moe_kernel = None


def renew_tied_head(model: Any) -> None:
    """Update a tied output head after a change of the embeddings.

    A checkpoint has no separate weight for a tied head, so a reload skips it. On a CPU the head has a packed copy.
    """
    head = getattr(model, "lm_head", None)
    embeddings = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embeddings is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head is not embeddings:
        head.tie_weights(embeddings)
        head.quant_method.process_weights_after_loading(head)
