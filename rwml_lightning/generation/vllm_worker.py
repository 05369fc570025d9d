"""Code that runs inside vLLM's worker processes. vLLM adds the methods of ``WorkerExtension`` to its worker class."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import psutil
from safetensors import safe_open
from torch import Tensor, nn

from rwml_lightning.functional import combine_digests, digesting
from rwml_lightning.generation.weight_files import ADAPTER_FILE
from rwml_lightning.models import load_skeleton
from rwml_lightning.weights import checkpoint_tensors

PARENT_CHECK_S = 2.0


class WorkerExtension:
    """Adds the methods to vLLM's workers that the generator calls on every worker."""

    reload_weights: Callable[..., None]  # methods and attributes of vLLM's worker, like the next
    get_model: Callable[[], Any]
    add_lora: Callable[[Any], bool]
    model_runner: Any

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

    def load_adapters(self, folder: str, number: int) -> tuple[str, str]:
        """Compute with other adapters from now on, and forget the last ones. A change of the base removes all adapters.

        Args:
            folder: Folder in PEFT's format; see :func:`rwml_lightning.generation.weight_files.write_adapter_folder`.
            number: Number of these adapters, by which requests name them. Every set of adapters has another one.

        Returns:
            Digest of the tensors, and why vLLM cannot compute with them (an empty text if it can).
        """
        from vllm.lora.request import LoRARequest

        digests: list[int] = []
        with safe_open(f"{folder}/{ADAPTER_FILE}", framework="pt") as file:
            for _ in digesting(((name, file.get_tensor(name)) for name in file.keys()), digests):  # noqa: SIM118
                pass
        manager = self.model_runner.lora_manager._adapter_manager
        if next(self.get_model().parameters()).is_cpu:
            for wrapper in manager.punica_wrapper_mapping.values():
                wrapper.add_lora_linear = partial(add_adapter, wrapper)
        try:
            self.add_lora(LoRARequest(f"policy-{number}", number, folder))
        except ValueError as error:
            return combine_digests(digests), str(error)
        # vLLM packs some names into one, and ignores without a word what is left and fits no layer.
        unused = sorted(manager.get_adapter(number).loras.keys() - manager.modules.keys())
        return combine_digests(digests), f"it has no layer {unused[0]}" if unused else ""

    def end_with(self, trainer_pid: int, engine_pid: int) -> None:
        """End this engine when the trainer has ended. vLLM's workers watch their engine, but the engine watches nothing."""

        def watch() -> None:
            while psutil.pid_exists(trainer_pid):
                time.sleep(PARENT_CHECK_S)
            os.kill(engine_pid, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def add_adapter(
    wrapper: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: Sequence[Tensor],
    lora_b_stacked: Sequence[Tensor],
    scale: float,
    output_slices: Sequence[int],
    **_: Any,
) -> None:
    """Add the output of a layer's adapter, in place of vLLM's function for CPUs, which copies the adapter for each token.

    vLLM's function serves any mixture of adapters. Here all tokens of a batch have the same adapter, in slot 0, or none.

    Args:
        wrapper: vLLM's ``PunicaWrapperCPU``.
        y: Output of the layer without adapters, to which the adapter's is added.
        x: Input of the layer.
        lora_a_stacked: Matrices A of the parts of the layer (such as query, key and value), with a leading dimension of slots.
        lora_b_stacked: Matrices B of the parts, likewise; they hold the adapters' own scale.
        scale: Further scale, which vLLM's layers set to 1.
        output_slices: Number of columns of each part in ``y``.
    """
    if wrapper.no_lora:
        return
    rows, columns = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    start = 0
    for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        columns[:, start : start + size].addmm_(rows @ a[0, 0].T, b[0, 0].T, alpha=scale)
        start += size


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
