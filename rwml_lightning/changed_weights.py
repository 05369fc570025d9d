"""Count the weights that changed between two models, by layer and module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from safetensors import safe_open
from torch import Tensor

from rwml_lightning.functional import count_changed
from rwml_lightning.models import resolve_model
from rwml_lightning.modules.loading import checkpoint_skeleton
from rwml_lightning.terminal import make_table
from rwml_lightning.weights import checkpoint_tensors, model_tensors

_LAYER = re.compile(r"\.(\d+)\.")
_MODULES = {
    "norms": re.compile(r"norm|\bln_"),
    "embeddings": re.compile(r"embed_tokens|embed_in|embeddings|\bwte\b|\bwpe\b"),
    "head": re.compile(r"lm_head|embed_out"),
    "qkv": re.compile(r"qkv|\bc_attn|query_key_value"),
    "q": re.compile(r"\bq_proj|\bq_[ab]_proj|\bquery\b"),
    "k": re.compile(r"\bk_proj|\bkey\b"),
    "v": re.compile(r"\bv_proj|\bvalue\b"),
    "mlp": re.compile(r"mlp|feed_forward|ffn|expert|\bmoe\b|\bfc\d"),
    "o": re.compile(r"\bo_proj|\bout_proj|attn\.c_proj|attention\.dense"),
}
_COLUMNS = ("q", "k", "v", "qkv", "o", "mlp", "norms", "embeddings", "head", "other")


@dataclass(frozen=True)
class Change:
    """Number of changed scalars in one module of one layer; ``layer`` is ``None`` outside the layers."""

    layer: int | None
    module: str
    changed: int
    total: int


def weight_place(name: str) -> tuple[int | None, str]:
    """Return the layer number and the module of a weight, from its Hugging Face name.

    Modules are ``q``, ``k``, ``v``, ``o``, ``mlp``, ``norms``, ``embeddings``, ``head``, ``other``, and ``qkv`` where
    the architecture has one weight for the three.
    """
    layer = _LAYER.search(name)
    module = next((module for module, pattern in _MODULES.items() if pattern.search(name)), "other")
    return (int(layer.group(1)) if layer else None), module


class SafetensorsFolder(Mapping[str, Tensor]):
    """Weights of a Hugging Face folder by name. Each access reads the tensor from disk; nothing is cached."""

    def __init__(self, folder: Path) -> None:
        files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def starting_weights(model: str, init_from: str | None) -> Mapping[str, Tensor]:
    """Return the initial weights of a stage, as :func:`rwml_lightning.modules.loading.load_policy` finds them.

    Weights of a folder or a checkpoint stay on disk. Weights with merged adapters of a checkpoint are in memory.

    Args:
        model: Model of the stage.
        init_from: Folder or checkpoint with the initial weights; ``None`` for the weights of ``model``.

    Returns:
        Weights by name; names are as in the files of the model.
    """
    if init_from is None or Path(init_from).is_dir():
        return SafetensorsFolder(resolve_model(init_from or model))
    policy = checkpoint_skeleton(Path(init_from))
    return dict(checkpoint_tensors(policy, model_tensors(policy)))


def compare_weights(
    before: Mapping[str, Tensor], after: Iterable[tuple[str, Tensor]], tolerance: float = 1e-3
) -> list[Change]:
    """Count changed scalars, one tensor at a time.

    Args:
        before: Initial weights by name.
        after: Names and values of the current weights.
        tolerance: Relative change above which a scalar counts; see :func:`rwml_lightning.functional.count_changed`.

    Returns:
        One row per layer and module, in order of layers. Weights outside the layers come last.

    Raises:
        ValueError: A weight is missing in ``before`` or has another shape there. The message names the weight.
    """
    changed: Counter[tuple[int | None, str]] = Counter()
    total: Counter[tuple[int | None, str]] = Counter()
    for name, tensor in after:
        # Some hub models are saved without the prefix of the base model.
        stored = next((n for n in (name, name.partition(".")[2]) if n in before), None)
        if stored is None:
            raise ValueError(
                f"the weight {name} has no counterpart in the initial weights: compare two versions of the same model"
            )
        place = weight_place(name)
        try:
            changed[place] += count_changed(before[stored], tensor, tolerance)
        except ValueError as error:
            raise ValueError(f"the weight {name} does not match the initial weight: {error}") from error
        total[place] += tensor.numel()
    places = sorted(total, key=lambda place: (place[0] is None, place[0] or 0, _COLUMNS.index(place[1])))
    return [Change(*place, changed[place], total[place]) for place in places]


def change_shares(changes: Sequence[Change]) -> dict[str, float]:
    """Compute the share of changed scalars in ``all`` weights and in each module, over all layers."""
    modules = [name for name in _COLUMNS if any(change.module == name for change in changes)]
    return {"all": _share(changes)} | {m: _share([c for c in changes if c.module == m]) for m in modules}


def render_changes(changes: Sequence[Change]) -> Table:
    """Render the per cent of changed scalars as a table with one row per layer and one column per module."""
    shares = change_shares(changes)
    table = make_table("Changed weights, per cent of scalars", ["layer", *shares])
    layers = list(dict.fromkeys(change.layer for change in changes))
    for layer in layers:
        of_layer = [change for change in changes if change.layer == layer]
        by_module = {"all": _share(of_layer)} | {change.module: _share([change]) for change in of_layer}
        cells = [f"{100 * by_module[module]:.2f}" if module in by_module else "" for module in shares]
        table.add_row("outside" if layer is None else str(layer), *cells, end_section=layer == layers[-1])
    table.add_row("all", *(f"{100 * share:.2f}" for share in shares.values()))
    return table


def _share(changes: Sequence[Change]) -> float:
    return sum(change.changed for change in changes) / max(sum(change.total for change in changes), 1)
