"""Seconds and GiB/s of a weight update by each path, and the share of the digests in it.

A path is one entry of :data:`PATHS`: where the engine holds the weights when it computes their digest, and how a generator is made
that takes weights by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpu_parts.device import device, timed
from gpu_parts.generation import closing, vllm_generator
from gpu_parts.models import random_model, random_model_folder
from gpu_parts.report import Report
from rwml_lightning.functional import combine_digests, digesting, tensor_digest
from rwml_lightning.generation import Generator, HFGenerator
from rwml_lightning.weights import cast_weights, model_tensors

NUM_UPDATES = 3


@dataclass(frozen=True)
class TransferPath:
    """A way of weights to a generator.

    Args:
        make: Makes the generator of a model's folder.
        digested_on: Device of the tensors when the generator computes their digest.
    """

    make: Callable[[str], Generator]
    digested_on: str


PATHS = {
    "attached module": TransferPath(lambda folder: HFGenerator(), device()),
    "copy into another module": TransferPath(
        lambda folder: HFGenerator(folder, dtype=_weights_dtype(), share_weights=False), device()
    ),
    "files in shared memory": TransferPath(lambda folder: vllm_generator(folder, 32), "cpu"),
}


def run(report: Report, shapes: Sequence[str]) -> None:
    for shape in shapes:
        with report.attempt(shape), random_model_folder(shape, torch.bfloat16) as folder:
            policy = random_model(shape, torch.bfloat16).eval()
            for name, path in PATHS.items():
                with report.attempt(f"{shape}, {name}"):
                    measure(report, f"{shape}, {name}", path, folder, policy)


def measure(report: Report, case: str, path: TransferPath, folder: str, policy: nn.Module) -> None:
    """Send changed weights several times, check that these arrived, and report the fastest update."""
    with closing(path.make(folder)) as generator:
        if generator.attach(policy):
            _, seconds = timed(lambda: generator.update_weights((), 1))
            report.add(case, gib=0.0, seconds=seconds)
            return
        generator.start()
        dtype = getattr(torch, generator.weights_dtype)
        seconds = min(_send(generator, policy, dtype, version) for version in range(1, 1 + NUM_UPDATES))
        sent = dict(cast_weights(policy, model_tensors(policy), dtype))
        num_bytes = sum(tensor.nbytes for tensor in sent.values())
        digest_s = _digest_seconds(sent) + _digest_seconds(
            {name: tensor.to(path.digested_on) for name, tensor in sent.items()}
        )
    report.add(
        case,
        gib=num_bytes / 2**30,
        seconds=seconds,
        gib_per_s=num_bytes / 2**30 / seconds,
        digest_seconds=digest_s,
        digest_share=digest_s / seconds,
    )


def _send(generator: Generator, policy: nn.Module, dtype: torch.dtype, version: int) -> float:
    """Change the weights, send them as training does, and return the seconds."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    digests: list[int] = []
    tensors = digesting(cast_weights(policy, model_tensors(policy), dtype), digests)
    _, seconds = timed(lambda: generator.update_weights(tensors, version))
    if generator.weights_digest != combine_digests(digests):
        raise RuntimeError("the weights that arrived are not those that were sent")
    return seconds


def _digest_seconds(tensors: dict[str, Tensor]) -> float:
    def digest() -> None:
        combine_digests(tensor_digest(name, tensor) for name, tensor in tensors.items())

    digest()
    return timed(digest)[1]


def _weights_dtype() -> str:
    return "bfloat16" if device() == "cuda" else "float32"
