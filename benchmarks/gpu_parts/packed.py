"""Prefix tree against padded batch: values and gradients, then seconds, memory and share of the card's peak.

Values and gradients are compared on the first layers of each shape, against the padded batch in float32 with the same weights.
In float32, a difference has a fixed tolerance. In bfloat16 both ways round, and the packed way may be off by little more than
the padded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from gpu_parts.device import device, peak_flops, peak_gib, reset_peak, timed
from gpu_parts.models import SHAPES, random_ids, random_model
from gpu_parts.report import Report
from rwml_lightning.functional import (
    checkpointing_arguments,
    micro_batches,
    packed_logprobs,
    plain_logprobs,
    use_tree_attention,
)

COMPARED_LAYERS = 4
VALUE_TOLERANCE = 1e-4
"""Largest difference of log-probabilities in nats, in float32."""
GRADIENT_TOLERANCE = 1e-3
"""Largest norm of the difference of all gradients, relative to their norm, in float32."""
ROUNDING_TOLERANCE = 1.5
"""Largest ratio of the packed way's distance from float32 to the padded way's, in bfloat16."""
NUM_TIMINGS = 3


@dataclass(frozen=True)
class Group:
    """Completions of one prompt.

    Args:
        prompt: Tokens of the prompt.
        completion: Tokens of each completion.
        size: Number of completions.
        budget: Maximum number of tokens of a forward pass, for both ways.
    """

    prompt: int
    completion: int
    size: int
    budget: int

    def sequences(self, vocabulary: int) -> list[list[int]]:
        rng = Random(0)
        prompt = random_ids(rng, self.prompt, vocabulary)
        return [prompt + random_ids(rng, self.completion, vocabulary) for _ in range(self.size)]


COMPARED = {"tiny": Group(24, 6, 3, 200), "1.5B": Group(512, 64, 4, 4096), "7B": Group(512, 64, 4, 4096)}
TIMED = {
    "tiny": Group(48, 8, 4, 224),
    "1.5B": Group(2048, 128, 16, 8704),
    "7B": Group(2048, 128, 16, 4352),
}


def run(report: Report, shapes: Sequence[str]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for shape in shapes:
        with report.attempt(f"{shape}, equal"):
            compare(report, shape)
        with report.attempt(shape):
            measure(report, shape)


def compare(report: Report, shape: str) -> None:
    """Compare both ways with float32 and with each other, in both dtypes, with the same weights."""
    group = COMPARED[shape]
    layers = min(COMPARED_LAYERS, SHAPES[shape]["num_hidden_layers"])
    model = random_model(shape, torch.bfloat16, num_hidden_layers=layers).float().train()
    use_tree_attention(model)  # padded batches still use SDPA
    sequences = group.sequences(model.config.vocab_size)
    weights = torch.randn(group.size * group.completion, device=device())
    ways = both_ways(model, sequences, group)

    def evaluate(way: str) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        (part,) = ways[way]
        logprobs = part()
        (logprobs * weights).sum().backward()
        gradients = [p.grad.float() for p in model.parameters() if p.grad is not None]
        return logprobs.detach().float(), gradients

    values, gradients = evaluate("plain")
    packed = evaluate("packed")
    nats, relative = float((packed[0] - values).abs().max()), distance(packed[1], gradients)
    report.add(
        f"{shape}, equal in float32",
        layers=layers,
        nats=nats,
        gradient=relative,
        within_tolerance=nats <= VALUE_TOLERANCE and relative <= GRADIENT_TOLERANCE,
    )
    del packed
    model.bfloat16()  # the same weights, which were made in bfloat16
    off = {}
    for way in ("plain", "packed"):
        rounded = evaluate(way)
        off[way] = float((rounded[0] - values).abs().mean()), distance(rounded[1], gradients)
        del rounded
    close = all(
        mine <= ROUNDING_TOLERANCE * theirs for mine, theirs in zip(off["packed"], off["plain"], strict=True)
    )
    report.add(
        f"{shape}, off float32 in bfloat16",
        layers=layers,
        nats=off["packed"][0],
        nats_plain=off["plain"][0],
        gradient=off["packed"][1],
        gradient_plain=off["plain"][1],
        within_tolerance=close,
    )


def distance(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the norm of the difference of all gradients, relative to the norm of the expected ones."""
    pairs = list(zip(gradients, expected, strict=True))
    square = sum(float((a - b).square().sum()) for a, b in pairs)
    return (square / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def measure(report: Report, shape: str) -> None:
    """Time forward and backward of a group for both ways and with each gradient checkpointing."""
    group = TIMED[shape]
    model = random_model(shape, torch.bfloat16).train()
    use_tree_attention(model)
    sequences = group.sequences(model.config.vocab_size)
    operations = count_operations(model, sequences, group)
    ways = both_ways(model, sequences, group)
    for checkpointing in ("none", "selective"):
        if checkpointing == "selective":
            model.gradient_checkpointing_enable(checkpointing_arguments("selective"))
        best: dict[str, float] = {}
        for way, parts in ways.items():
            case = f"{shape}, {way}, checkpointing {checkpointing}"
            with report.attempt(case):
                best[way], peak = time_step(model, parts, group)
                share = None if (flops := peak_flops()) is None else operations[way] / best[way] / flops
                report.add(
                    case,
                    passes=len(parts),
                    seconds=best[way],
                    tokens_per_s=sum(map(len, sequences)) / best[way],
                    times_plain=best["plain"] / best[way] if "plain" in best else None,
                    peak_gib=peak,
                    share_of_peak=share,
                )


def time_step(model: Any, parts: Sequence[Callable[[], Tensor]], group: Group) -> tuple[float, float | None]:
    """Return the seconds of the fastest forward and backward pass of all parts, and the peak memory in GiB."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        for part in parts:
            (part().sum() / (group.size * group.completion)).backward()

    step()  # compiles the kernels
    reset_peak()
    return min(timed(step)[1] for _ in range(NUM_TIMINGS)), peak_gib()


def both_ways(model: Any, sequences: list[list[int]], group: Group) -> dict[str, list[Callable[[], Tensor]]]:
    """Return the forward passes of both ways, which compute the log-probabilities of all completions."""
    rows = max(1, group.budget // len(sequences[0]))

    def plain(first: int) -> Callable[[], Tensor]:
        part = sequences[first : first + rows]
        return lambda: plain_logprobs(model, part, [group.prompt] * len(part)).logprobs

    def packed(micro: Any) -> Callable[[], Tensor]:
        return lambda: packed_logprobs(model, micro).logprobs

    micros = micro_batches(sequences, [group.prompt] * group.size, group.budget)
    return {
        "plain": [plain(first) for first in range(0, group.size, rows)],
        "packed": [packed(micro.to(device())) for micro in micros],
    }


def count_operations(model: Any, sequences: list[list[int]], group: Group) -> dict[str, float]:
    """Return the floating-point operations of both ways, without what is computed again: linear layers, attention, head."""
    body = sum(p.numel() for p in model.model.layers.parameters())
    head = model.lm_head.weight.numel() * group.size * group.completion
    per_pair = (
        2 * model.config.num_hidden_layers * model.config.hidden_size
    )  # query and key, attention and value
    micros = micro_batches(sequences, [group.prompt] * group.size, group.budget)
    tokens = {"plain": sum(map(len, sequences)), "packed": sum(micro.num_nodes for micro in micros)}
    pairs = {
        "plain": sum(len(s) * (len(s) + 1) // 2 for s in sequences),
        "packed": sum(int((micro.position_ids + 1).sum()) for micro in micros),
    }
    return {way: 6.0 * (body * tokens[way] + head + per_pair * pairs[way]) for way in tokens}
