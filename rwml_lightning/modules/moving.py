"""Models that stay in the memory of the machine and are on the card only while they compute."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@contextmanager
def moved_to(device: torch.device, model: nn.Module) -> Iterator[nn.Module]:
    """Move a model to a device for a block, and back.

    Args:
        device: Device for the block. Nothing happens if the model is there already.
        model: Model that the block does not change: its old tensors are used again, and nothing is copied back.
    """
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    homes = [(tensor, tensor.data) for tensor in tensors if tensor.device != device]
    if not homes:
        yield model
        return
    before = homes[0][1].device
    try:
        yield model.to(device)
    finally:
        if any(isinstance(tensor, DTensor) for tensor, _ in homes):
            model.to(before)  # a shard cannot be replaced
        else:
            for tensor, home in homes:
                tensor.data = home
