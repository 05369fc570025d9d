"""Memory of a run, planned before anything is loaded: what lies on a card during rollouts and during an update."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from rwml_lightning.memory.sizes import head_bytes, measure, num_parameters
from rwml_lightning.models import causal_config, resolve_model
from rwml_lightning.modules.base import PolicyModule

GIB = 2**30
Phase = Literal["rollouts", "reference", "update"]
PHASES: tuple[Phase, ...] = ("rollouts", "reference", "update")
_PROCESS = {"cpu": 0.8 * GIB, "cuda": 1.5 * GIB}
"""Libraries of the trainer's process, or a CUDA context and fragmentation."""
_ENGINE_PROCESS = {"cpu": 1.2 * GIB, "cuda": 0.0}
_ASLEEP = 1.0 * GIB
"""What an engine that sleeps keeps: its CUDA context and graphs."""
_TEXT_TOKENS = 128
"""Length of a text for the embedder's activations."""


@dataclass(frozen=True)
class Hardware:
    """The memory of one rank.

    Args:
        kind: ``cuda`` or ``cpu``.
        available: Bytes of a card, or of the machine divided by its ranks.
        world_size: Number of ranks.
        sharded: Whether weights, gradients and moments are sharded over the ranks.
        mixed_precision: Whether matrix products are in bfloat16 by autocast.
    """

    kind: Literal["cuda", "cpu"]
    available: float
    world_size: int = 1
    sharded: bool = False
    mixed_precision: bool = False


@dataclass(frozen=True)
class Part:
    """Bytes of one part in each phase, and what makes it smaller."""

    name: str
    num_bytes: Mapping[Phase, float]
    remedy: str

    @property
    def largest(self) -> float:
        return max(self.num_bytes.values(), default=0.0)


@dataclass(frozen=True)
class Plan:
    """Memory of one rank.

    Args:
        stage: Name of the stage.
        parts: Everything that needs memory.
        hardware: Memory of the rank.
    """

    stage: str
    parts: Sequence[Part]
    hardware: Hardware

    def total(self, phase: Phase) -> float:
        """Return the bytes of all parts in a phase."""
        return sum(part.num_bytes.get(phase, 0.0) for part in self.parts)

    @property
    def phases(self) -> list[Phase]:
        """Phases of the stage, in order."""
        return [phase for phase in PHASES if any(phase in part.num_bytes for part in self.parts)]

    def check(self) -> None:
        """Raise ValueError with the biggest part of the fullest phase, and what to change, if the plan does not fit."""
        phase = max(self.phases, key=self.total)
        if self.total(phase) <= self.hardware.available:
            return
        biggest = max(self.parts, key=lambda part: part.num_bytes.get(phase, 0.0))
        during = {"rollouts": "rollouts", "reference": "the pass of the reference", "update": "an update"}[
            phase
        ]
        place = (
            "the card has" if self.hardware.kind == "cuda" else "this machine has for each of its processes"
        )
        raise ValueError(
            f"{self.stage} needs {self.total(phase) / GIB:.1f} GiB during {during}, but {place} {self.hardware.available / GIB:.1f}; the "
            f"biggest part is {biggest.name} ({biggest.num_bytes[phase] / GIB:.1f} GiB): {biggest.remedy} (docs/scale.md, Memory)"
        )

    def table(self) -> Table:
        """Return the plan as a table, in GiB."""
        place = "card" if self.hardware.kind == "cuda" else "process"
        table = Table(title=f"Memory of a {place} in GiB: {self.stage}", title_justify="left")
        table.add_column("part")
        for phase in self.phases:
            table.add_column(phase, justify="right")
        for part in self.parts:
            if part.largest > 0:
                table.add_row(
                    part.name, *(f"{part.num_bytes.get(phase, 0.0) / GIB:.2f}" for phase in self.phases)
                )
        table.add_section()
        table.add_row("total", *(f"{self.total(phase) / GIB:.2f}" for phase in self.phases))
        table.add_row("available", *(f"{self.hardware.available / GIB:.2f}" for _ in self.phases))
        return table


@dataclass(frozen=True)
class Embedder:
    """An embedding model in this process.

    Args:
        folder: Folder of the model.
        device: Device of the config; ``None`` for the card if there is one.
        batch_size: Texts per batch.
    """

    folder: Path
    device: str | None = None
    batch_size: int = 64

    @property
    def num_bytes(self) -> float:
        """Weights, in the dtype of their files, and activations of a batch."""
        weights = sum(file.stat().st_size for file in self.folder.rglob("*.safetensors"))
        width = getattr(_config(self.folder), "hidden_size", 0)
        return weights + self.batch_size * _TEXT_TOKENS * width * 40


def plan(module: PolicyModule, generator: Any, embedders: Sequence[Embedder], hardware: Hardware) -> Plan:
    """Add up the memory of a stage on one rank.

    Args:
        module: Module of the stage; nothing is loaded.
        generator: Generator of the config.
        embedders: Embedding models in this process.
        hardware: Memory of the rank.
    """
    sizes = measure(module, hardware.mixed_precision)
    shards = hardware.world_size if hardware.sharded else 1
    tokens = module.max_tokens_per_micro_batch
    kept, backward = sizes.activations.peak(tokens, module.gradient_checkpointing)
    # Under FSDP two layers are gathered at a time, and all that is outside of the layers for the whole pass.
    gathered = 0.0 if shards == 1 else 2 * sizes.layer + sizes.outside
    backward = max(backward + sizes.largest_gradient, head_bytes(sizes, module.head_chunk_size, tokens))
    forward_only = (
        3 * tokens * sizes.activations.widest
        + tokens * sizes.activations.inputs / sizes.activations.num_layers
    )
    grpo: Any = getattr(module, "grpo", None)
    apart = grpo is not None and grpo.kl_coefficient > 0 and module.lora is None
    on_card = apart and (grpo.reference_device == "card" or hardware.kind == "cpu")
    phases: list[Phase] = (
        ["rollouts", "reference", "update"] if apart and not on_card else ["rollouts", "update"]
    )
    activations: dict[Phase, float] = {"update": kept + backward}
    if "reference" in phases:
        activations["reference"] = forward_only
    smaller = "train adapters (model.init_args.lora), or shard over more cards (trainer.strategy fsdp)"
    if module.dtype_name == "float32":
        smaller = "set model.init_args.dtype bfloat16 and optimizer.stochastic_rounding, " + smaller
    fewer = "set model.init_args.optimizer.moments int8, or " if module.optimizer.moments == "float32" else ""
    parts = [
        _always("weights", sizes.weights / shards, phases, smaller),
        Part("gradients", {"update": sizes.gradients / shards}, smaller),
        _always("moments", sizes.moments / shards, phases, fewer + smaller),
        Part("bfloat16 copies of weights", {"update": sizes.casts}, "set model.init_args.dtype bfloat16"),
        Part("gathered weights", dict.fromkeys(phases[1:], gathered), "use a smaller model"),
        Part(
            "activations",
            activations,
            "lower model.init_args.max_tokens_per_micro_batch, or set gradient_checkpointing full",
        ),
    ]  # fmt: skip
    if apart:
        where: list[Phase] = phases if on_card else ["reference"]
        elsewhere = on_card and hardware.kind == "cuda"
        remedy = "set model.init_args.grpo.reference_device cpu" if elsewhere else smaller
        parts.append(_always("KL reference", sizes.weights / shards, where, remedy))
    used = sum(
        one.num_bytes
        for one in embedders
        if hardware.kind == "cpu" or not (one.device or "").startswith("cpu")
    )
    parts.append(
        _always(
            "embedder", used, phases, "set the reward's device to cpu, or its server to another machine's"
        )
    )
    parts.append(_generator_part(generator, module, hardware, phases))
    parts.append(_always("libraries", _PROCESS[hardware.kind], phases, "use a larger machine"))
    return Plan(type(module).__name__, parts, hardware)


def _generator_part(
    generator: Any, module: PolicyModule, hardware: Hardware, phases: Sequence[Phase]
) -> Part:
    kind = type(generator).__name__
    if kind == "VLLMGenerator" and hardware.kind == "cuda" and generator.kv_cache_gib is None:
        awake = generator.gpu_memory_utilization * hardware.available
        remedy = "lower data.generator.init_args.gpu_memory_utilization, or set enable_sleep_mode"
    elif kind == "VLLMGenerator":
        number = 4 if hardware.kind == "cpu" and generator.dtype == "auto" else _size_of(generator.dtype)
        cache = 2.0 if generator.kv_cache_gib is None else generator.kv_cache_gib
        awake = num_parameters(module.model) * number + cache * GIB + _ENGINE_PROCESS[hardware.kind]
        remedy = "lower data.generator.init_args.kv_cache_gib, or set enable_sleep_mode"
    elif kind == "HFGenerator":
        own = num_parameters(module.model) * _size_of(generator.dtype) if hardware.sharded else 0
        awake = own + _cache_bytes(module.model, generator, _size_of(module.dtype_name))
        return Part("generator", {"rollouts": awake, **dict.fromkeys(phases[1:], float(own))}, "lower data.generator.init_args.max_num_seqs")  # fmt: skip
    else:
        return Part("generator", {}, "use a generator on another card")
    sleeps = hardware.kind == "cuda" and getattr(generator, "enable_sleep_mode", False)
    asleep = min(_ASLEEP, awake) if sleeps else awake
    return Part("generator", {"rollouts": awake, **dict.fromkeys(phases[1:], asleep)}, remedy)


def _cache_bytes(model: str, generator: Any, number: int, new_tokens: int = 512) -> float:
    """Return the keys and values of ``max_num_seqs`` completions of 512 tokens each, as the prompts of groups are kept once."""
    config = causal_config(model).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = min(new_tokens, generator.max_model_len or new_tokens)
    return 2 * config.num_hidden_layers * heads * width * number * generator.max_num_seqs * length


def _always(name: str, num_bytes: float, phases: Sequence[Phase], remedy: str) -> Part:
    return Part(name, dict.fromkeys(phases, num_bytes), remedy)


def _size_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    known = (
        file for file in sorted(folder.rglob("config.json")) if "model_type" in json.loads(file.read_text())
    )
    found = next(known, None)  # modules such as pooling have other configs beside it
    return None if found is None else AutoConfig.from_pretrained(found.parent, trust_remote_code=False)


def local_embedders(part: Any) -> Iterator[Embedder]:
    """Yield the embedding models in a part of the config that run in this process, at any depth."""
    part = vars(part) if hasattr(part, "__dict__") else part
    if isinstance(part, list):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    if isinstance(part.get("embedder"), str) and not part.get("server"):
        yield Embedder(resolve_model(part["embedder"]), part.get("device"), part.get("batch_size") or 64)
    for value in part.values():
        yield from local_embedders(value)


def machine_memory() -> float:
    """Return the bytes of this machine's memory, or the limit of its control group if that is smaller."""
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(float(text))
    return min(limits)


def card_memory() -> float:
    """Return the bytes of this rank's card."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    card = local_rank if local_rank < torch.cuda.device_count() else 0
    return float(torch.cuda.get_device_properties(card).total_memory)
