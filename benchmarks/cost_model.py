"""Cost of a step by formulas: tokens, bytes and seconds on 1, 8, 64 and 1,024 cards with the published settings.

    python benchmarks/cost_model.py              the table of docs/scale.md
    python benchmarks/cost_model.py --measure    formulas beside what a small model takes on this machine

A step is: generate, score, update, transfer weights, gather the step. Each card has an engine and an equal share of the step; gradients
are reduced once a step (ddp), or weights gathered and gradients scattered in each micro-batch (fsdp, from 8 cards on).
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import sys
import time
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Card:
    """Peak figures of an H100 SXM (NVIDIA's data sheet, without sparsity) and the shares of them that are assumed.

    Args:
        flops: bf16 operations per second.
        bandwidth: Bytes per second of the card's memory.
        link: Bytes per second between cards of a machine, one direction (NVLink 4: 900 GB/s both ways).
        network: Bytes per second of a card to other machines (one 400 Gbit/s adapter a card).
        pcie: Bytes per second between card and machine, one direction (generation 5, 16 lanes, as measured in practice).
        compute_share: Share of ``flops`` in training and prefill.
        memory_share: Share of ``bandwidth`` in decoding.
        link_share: Share of the links in collectives.
    """

    flops: float = 989e12
    bandwidth: float = 3.35e12
    link: float = 450e9
    network: float = 50e9
    pcie: float = 50e9
    compute_share: float = 0.4
    memory_share: float = 0.6
    link_share: float = 0.7
    cards_per_machine: int = 8


@dataclass(frozen=True)
class Setting:
    """A recipe.

    Args:
        name: Name in the table.
        parameters: Parameters of the policy.
        layers: Decoder layers.
        width: Width of the hidden states.
        kv_width: Width of keys, which is that of values.
        prompts: Prompts of a step.
        group: Completions of a prompt.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a completion.
        embedder: Parameters of the reward's embedder.
        text_tokens: Tokens of a text that is embedded.
        micro_tokens: Tokens of a micro-batch.
    """

    name: str
    parameters: float
    layers: int
    width: int
    kv_width: int
    prompts: int
    group: int
    prompt_tokens: int = 2048
    new_tokens: int = 512
    embedder: float = 7.57e9
    text_tokens: int = 60
    micro_tokens: int = 16384
    kl: bool = True


ALFWORLD = Setting("ALFWorld, 7B, 32 x 8", 7.62e9, 28, 3584, 512, 32, 8)
TAU2 = Setting("tau2, 8B, 32 x 16", 8.19e9, 36, 4096, 1024, 32, 16)
CARDS = (1, 8, 64, 1024)


def tree_tokens(setting: Setting) -> int:
    """Tokens that an update computes: each prompt once, and its completions."""
    return setting.prompts * (setting.prompt_tokens + setting.group * setting.new_tokens)


def own_tokens(setting: Setting, cards: int) -> int:
    """Tokens of the rank with the largest share; more ranks than prompts share the completions of a prompt and repeat it."""
    if cards <= setting.prompts:
        return -(-tree_tokens(setting) // cards)
    return setting.prompt_tokens + -(-setting.prompts * setting.group // cards) * setting.new_tokens


def padded_tokens(setting: Setting) -> int:
    """Tokens of the plain padded batch, for comparison."""
    return setting.prompts * setting.group * (setting.prompt_tokens + setting.new_tokens)


def forward_flops(setting: Setting, tokens: float, context: float) -> float:
    """Operations of a forward pass: two per parameter and token, and attention to ``context`` tokens."""
    return tokens * (2 * setting.parameters + 4 * setting.layers * setting.width * context)


def update_flops(setting: Setting, recompute: bool = True) -> float:
    """Operations of an update: forward, backward (twice), recomputation of the layers, and a pass of the reference."""
    passes = 3 + recompute + setting.kl
    return passes * forward_flops(setting, tree_tokens(setting), setting.prompt_tokens / 2)


def transfer_bytes(setting: Setting) -> float:
    """Bytes of the weights in bfloat16."""
    return 2 * setting.parameters


def gather_bytes(setting: Setting) -> float:
    """Bytes of a step's groups, pickled: 5 per token id, 9 per log-probability, the prompt's text (4 per token), and texts."""
    prompts = setting.prompts * setting.prompt_tokens * (5 + 4)
    completions = setting.prompts * setting.group * setting.new_tokens * (5 + 9 + 4)
    return prompts + completions


def generate_seconds(setting: Setting, card: Card, cards: int) -> float:
    """Prefill of each prompt once, then decoding: each token reads the weights and the keys and values of all sequences."""
    prompts = max(setting.prompts / cards, 1)
    prefill = forward_flops(setting, prompts * setting.prompt_tokens, setting.prompt_tokens / 2)
    sequences = prompts * setting.group
    context = setting.prompt_tokens + setting.new_tokens / 2
    cache = sequences * context * setting.layers * 2 * setting.kv_width * 2
    decode = setting.new_tokens * (2 * setting.parameters + cache) / (card.bandwidth * card.memory_share)
    return prefill / (card.flops * card.compute_share) + decode


def reward_seconds(setting: Setting, card: Card, cards: int) -> float:
    """Embedding of each prediction, and of each next state once."""
    texts = max(setting.prompts / cards, 1) * (setting.group + 1)
    return texts * setting.text_tokens * 2 * setting.embedder / (card.flops * card.compute_share)


def update_seconds(setting: Setting, card: Card, cards: int) -> float:
    """Compute of the largest share, and what the links carry."""
    own = own_tokens(setting, cards)
    compute = update_flops(setting) * own / tree_tokens(setting) / (card.flops * card.compute_share)
    if cards == 1:
        return compute
    rate = (card.link if cards <= card.cards_per_machine else card.network) * card.link_share
    # FSDP gathers float32 weights for forward, backward and the reference, and scatters gradients, in each micro-batch.
    carried = -(-own // setting.micro_tokens) * (4 + 4 + 4 + 4 * setting.kl) * setting.parameters / rate
    return max(compute, carried)  # the next layer is gathered while one computes


def transfer_seconds(setting: Setting, card: Card, cards: int) -> float:
    """Weights to the engine on the same card by CUDA IPC: read and written once; shards are gathered first."""
    copied = 2 * transfer_bytes(setting) / (card.bandwidth * card.memory_share)
    if cards == 1:
        return copied
    rate = (card.link if cards <= card.cards_per_machine else card.network) * card.link_share
    return copied + transfer_bytes(setting) / rate


def gather_seconds(setting: Setting, card: Card, cards: int) -> float:
    """Every rank receives the whole step; gloo over the network."""
    return 0.0 if cards == 1 else gather_bytes(setting) / (card.network * 0.1)


def table(setting: Setting, card: Card) -> Any:
    """Return the table of one recipe."""
    from rich.table import Table

    made = Table(title=f"{setting.name}: seconds of a step", title_justify="left")
    for name in ("cards", "generate", "reward", "update", "transfer", "gather", "step", "tokens/s a card"):
        made.add_column(name, justify="right")
    for cards in CARDS:
        parts = [f(setting, card, cards) for f in (generate_seconds, reward_seconds, update_seconds, transfer_seconds, gather_seconds)]  # fmt: skip
        rate = tree_tokens(setting) / sum(parts) / cards
        made.add_row(str(cards), *(f"{part:.2f}" for part in parts), f"{sum(parts):.1f}", f"{rate:,.0f}")
    return made


def volumes() -> Any:
    """Return the table of tokens and bytes, which do not depend on the number of cards."""
    from rich.table import Table

    made = Table(title="Tokens, operations and bytes of a step", title_justify="left")
    for name in (
        "recipe",
        "tokens computed",
        "padded batch",
        "PFLOP of an update",
        "weights GB",
        "gathered MB",
    ):
        made.add_column(name, justify="left" if name == "recipe" else "right")
    for setting in (ALFWORLD, TAU2):
        made.add_row(
            setting.name,
            f"{tree_tokens(setting):,}",
            f"{padded_tokens(setting):,}",
            f"{update_flops(setting) / 1e15:.1f}",
            f"{transfer_bytes(setting) / 1e9:.1f}",
            f"{gather_bytes(setting) / 1e6:.1f}",
        )
    return made


def measure(model: str) -> Any:
    """Return formulas beside what a small step takes here: tokens, operations, and bytes that are gathered and transferred."""
    import torch
    from rich.table import Table
    from torch.utils.flop_counter import FlopCounterMode

    from rwml_lightning.functional import micro_batches, packed_logprobs
    from rwml_lightning.modules.loading import load_policy
    from rwml_lightning.schema import Completion
    from rwml_lightning.weights import model_tensors

    policy: Any = load_policy(model)
    config = policy.config.get_text_config()
    setting = Setting(
        model, sum(p.numel() for p in policy.parameters()), config.num_hidden_layers, config.hidden_size, 0, 2, 4, 192, 32, kl=False
    )  # fmt: skip
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(config.vocab_size) for _ in range(count))

    groups = [(ids(setting.prompt_tokens), [ids(setting.new_tokens) for _ in range(setting.group)]) for _ in range(setting.prompts)]  # fmt: skip
    sequences = [prompt + answer for prompt, answers in groups for answer in answers]
    micros = micro_batches(sequences, [setting.prompt_tokens] * len(sequences), 10**6)
    counter = FlopCounterMode(display=False)
    start = time.perf_counter()
    with counter:
        for micro in micros:
            packed_logprobs(policy, micro).logprobs.sum().backward()
    counted = counter.get_total_flops()
    for micro in micros:  # again without the counter
        start = time.perf_counter()
        packed_logprobs(policy, micro).logprobs.sum().backward()
        seconds = time.perf_counter() - start
    side = torch.randn(1024, 1024)
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(20):
            side @ side
        rate = 20 * 2 * 1024**3 / (time.perf_counter() - begun)
    prompts = [(prompt, "x" * 4 * len(prompt)) for prompt, _ in groups]
    completions = [
        (Completion(answer, tuple(-draw.random() for _ in answer), "stop", 0), "x" * 4 * len(answer))
        for _, answers in groups
        for answer in answers
    ]
    gathered = len(pickle.dumps((prompts, completions), protocol=pickle.HIGHEST_PROTOCOL))
    weights = sum(t.numel() * t.element_size() for _, t in model_tensors(policy))
    own = replace(setting, kl=False)
    made = Table(title=f"Formulas and measurements: {model}, 2 prompts of 192 tokens x 4 answers of 32", title_justify="left")  # fmt: skip
    for name in ("quantity", "formula", "measured", "ratio"):
        made.add_column(name, justify="left" if name == "quantity" else "right")
    # The head is computed at completion tokens alone, once more in the backward pass.
    rows = [
        ("tokens computed", tree_tokens(own), sum(micro.num_nodes for micro in micros), 1, ""),
        ("GFLOP of an update", update_flops(own, recompute=False), counted, 1e9, ".1f"),
        ("seconds of an update at the rate of matrix products", update_flops(own, recompute=False) / rate, seconds, 1, ".2f"),
        ("MB of the weights in float32", 2 * transfer_bytes(own), weights, 1e6, ".1f"),
        ("kB gathered", gather_bytes(own), gathered, 1e3, ".1f"),
    ]  # fmt: skip
    for name, formula, found, unit, form in rows:
        made.add_row(
            name,
            f"{formula / unit:{form or ',.0f'}}",
            f"{found / unit:{form or ',.0f'}}",
            f"{formula / found:.2f}",
        )
    return made


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--model", default="package:smollm2-135m-instruct")
    parser.add_argument(
        "--card", default="{}", help="other figures of a card, as JSON, for example '{\"flops\": 3e14}'"
    )
    options = parser.parse_args()
    from rwml_lightning.terminal import Terminal

    terminal = Terminal(width=None if sys.stdout.isatty() else 120)
    if options.measure:
        terminal.print(measure(options.model))
        return
    card = Card(**json.loads(options.card))
    terminal.print(volumes())
    for setting in (ALFWORLD, TAU2):
        terminal.print(table(setting, card))


if __name__ == "__main__":
    main()
