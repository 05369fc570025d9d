"""Time and memory on the device of this process: the first card, or the CPU if there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

GIB = 2**30
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bfloat16 operations per second by NVIDIA's data sheets; the first name that the card's name contains counts."""


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def card_name() -> str | None:
    """Return the name of the card; ``None`` without a card."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def peak_flops() -> float | None:
    """Return the dense bfloat16 operations per second of the card; ``None`` for an unknown card or a CPU."""
    name = card_name() or ""
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and its seconds, with all work on the card that it started."""
    _synchronize()
    start = time.perf_counter()
    result = call()
    _synchronize()
    return result, time.perf_counter() - start


def reset_peak() -> None:
    """Forget the peak of :func:`peak_gib`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Return the largest memory of this process's tensors on the card since :func:`reset_peak`; ``None`` without a card."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def used_gib() -> float | None:
    """Return the memory of the card that all processes use together, engines included; ``None`` without a card."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


class UsedPeak:
    """Largest memory of the card that all processes use together, sampled every 20 ms, since the last :meth:`take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peak = used_gib() or 0.0

    def sample(self) -> None:
        used = used_gib() or 0.0
        with self._lock:
            self._peak = max(self._peak, used)

    def take(self) -> float:
        """Return the peak in GiB, and start the next one."""
        self.sample()
        with self._lock:
            peak, self._peak = self._peak, 0.0
        return peak


@contextmanager
def watching_card() -> Iterator[UsedPeak]:
    """Sample the memory of the card from a thread during the block."""
    peak, stop = UsedPeak(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
