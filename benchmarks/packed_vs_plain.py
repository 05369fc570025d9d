"""Forward and backward pass of a group's completion log-probabilities: prefix tree against padded batch.

    python benchmarks/packed_vs_plain.py
    python benchmarks/packed_vs_plain.py --prompt 128 --completion 32 --group 16
    python benchmarks/packed_vs_plain.py --prompt 128 --completion 24 --turns 8 --reply 40   # episodes of a policy

The model has SmolLM2-135M's shapes with random weights in float32 on the CPU. Values and gradients are compared first. Then
both sides alternate in one process, and the best time of each counts; peak memory is measured in a separate process for each.
The plain batch is as fast as possible: equal lengths, so no padding, fused causal attention, and the head on completions only.
With episodes, one plain batch holds one turn of all members.

Two limits are printed with the measured ratio. The token ratio is the largest gain of the linear layers. The operation ratio
also counts attention and the head, where packing saves less (the chunked head even computes its logits twice).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rwml_lightning.functional import (
    build_tree,
    micro_batches,
    packed_logprobs,
    plain_logprobs,
    use_tree_attention,
)

CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
WAYS = ("plain", "packed")
VALUE_TOLERANCE = 1e-4
"""Largest difference of log-probabilities in nats, in float32."""
GRADIENT_TOLERANCE = 1e-3
"""Largest norm of the difference of all gradients, relative to their norm."""


class Case:
    """One group with a random prompt and random completions, and both ways to compute their log-probabilities.

    With several turns, each member continues after its completion with a random reply of the environment and another
    completion. Every turn is a separate sequence, and only its completion is trained.
    """

    def __init__(self, prompt: int, completion: int, group: int, turns: int, reply: int) -> None:
        torch.manual_seed(0)

        def random_ids(count: int) -> list[int]:
            return torch.randint(CONFIG.vocab_size, (count,)).tolist()

        so_far = [random_ids(prompt)] * group
        self.group = group
        self.sequences: list[list[int]] = []
        self.trained_from: list[int] = []
        for _ in range(turns):
            self.trained_from += [len(start) for start in so_far]
            so_far = [start + random_ids(completion) for start in so_far]
            self.sequences += so_far
            so_far = [start + random_ids(reply) for start in so_far]
        self.model = LlamaForCausalLM(CONFIG).train()
        use_tree_attention(self.model)  # plain batches still use SDPA

    def parts(self, way: str) -> Iterator[Tensor]:
        """Yield the log-probabilities of the completions' tokens from one forward pass after another."""
        if way == "packed":
            most = sum(map(len, self.sequences))
            (micro,) = micro_batches(self.sequences, self.trained_from, max_tokens=most)
            yield packed_logprobs(self.model, micro).logprobs
            return
        for first in range(0, len(self.sequences), self.group):
            part = slice(first, first + self.group)
            yield plain_logprobs(self.model, self.sequences[part], self.trained_from[part]).logprobs

    def step(self, way: str) -> tuple[Tensor, float]:
        """Run forward and backward of all sequences; return log-probabilities, [turns * group * completion], and seconds."""
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        trained = sum(len(s) - first for s, first in zip(self.sequences, self.trained_from, strict=True))
        found = []
        for logprobs in self.parts(way):
            (logprobs.sum() / trained).backward()
            found.append(logprobs.detach())
        return torch.cat(found), time.perf_counter() - start

    def gradients(self) -> Tensor:
        """Return all gradients as one vector."""
        return torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])

    def compare(self) -> tuple[float, float]:
        """Return the largest difference of values in nats, and the relative difference of gradients.

        Raises:
            SystemExit: A difference is above its tolerance.
        """
        expected, _ = self.step("plain")
        expected_gradients = self.gradients()
        actual, _ = self.step("packed")
        value = float((actual - expected).abs().max())
        gradient = float((self.gradients() - expected_gradients).norm() / expected_gradients.norm())
        if value > VALUE_TOLERANCE or gradient > GRADIENT_TOLERANCE:
            raise SystemExit(f"packed and plain differ: {value:.1e} nats, gradients {gradient:.1e}")
        return value, gradient

    def token_ratio(self) -> float:
        """Return the number of tokens of the plain batch divided by the number of distinct prefixes."""
        return sum(map(len, self.sequences)) / build_tree(self.sequences).num_nodes

    def operation_ratio(self) -> float:
        """Return the ratio, plain over packed, of multiplications in forward and backward: linear layers, attention and head."""
        tree = build_tree(self.sequences)
        trained = sum(len(s) - first for s, first in zip(self.sequences, self.trained_from, strict=True))
        body = sum(p.numel() for p in self.model.model.layers.parameters())
        head = self.model.lm_head.weight.numel()
        pair = 2 * CONFIG.hidden_size * CONFIG.num_hidden_layers  # query times key, and attention times value
        plain = sum(3 * len(s) * body + 3.5 * pair * len(s) * (len(s) + 1) / 2 for s in self.sequences)
        packed = 3 * tree.num_nodes * body + 3.5 * pair * float((tree.depths + 1).sum())
        return (plain + 3 * trained * head) / (packed + 4 * trained * head)


def peak_gib() -> float:
    """Return the largest resident memory of this process so far in GiB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--completion", type=int, default=96, help="tokens per completion")
    parser.add_argument("--group", type=int, default=8, help="number of completions")
    parser.add_argument("--turns", type=int, default=1, help="turns per episode")
    parser.add_argument(
        "--reply", type=int, default=0, help="tokens of the environment's reply between two turns"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of timings per way")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        Case(args.prompt, args.completion, args.group, args.turns, args.reply).step(args.peak_of)
        print(peak_gib())
        return

    # Start these before this process grows: the peak of a child starts from its parent's size.
    command = [
        sys.executable,
        __file__,
        *(f"--{name}={getattr(args, name)}" for name in ("prompt", "completion", "group", "turns", "reply")),
    ]
    peaks = {
        way: float(
            subprocess.run([*command, "--peak-of", way], check=True, capture_output=True, timeout=900).stdout
        )
        for way in WAYS
    }
    case = Case(args.prompt, args.completion, args.group, args.turns, args.reply)
    console = Console()
    value, gradient = case.compare()
    console.print(f"equal: values within {value:.1e} nats, gradients within {gradient:.1e} of their norm")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            seconds[way].append(case.step(way)[1])
    best = {way: min(times) for way, times in seconds.items()}
    table = Table(
        title=f"prompt {args.prompt}, {args.group} x {args.turns} completions of {args.completion}, {torch.get_num_threads()} threads"
    )
    for column in ("", "seconds (best)", "all rounds", "peak memory (GiB)"):
        table.add_column(column, justify="left" if not column else "right")
    for way in WAYS:
        rounds = " ".join(f"{time:.2f}" for time in seconds[way])
        table.add_row(way, f"{best[way]:.2f}", rounds, f"{peaks[way]:.2f}")
    console.print(table)
    ratio = best["plain"] / best["packed"]
    tokens, operations = case.token_ratio(), case.operation_ratio()
    console.print(
        f"packed is {ratio:.2f} times faster: {ratio / tokens:.0%} of the token ratio ({tokens:.2f}), ",
        end="",
    )
    console.print(f"{ratio / operations:.0%} of the operation ratio ({operations:.2f})")


if __name__ == "__main__":
    main()
