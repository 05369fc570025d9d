"""What a stored result depends on, as JSON that can be compared: parts of a config, transitions, weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.schema import Transition


def digest_of_names(transitions: Sequence[Transition]) -> str:
    """Digest of which transitions these are, in whatever order."""
    return hashlib.sha256("\n".join(sorted(t.transition_id for t in transitions)).encode()).hexdigest()


def digest_of_weights(init_from: str | None) -> str | None:
    """By content: each run's warm-up lies in a folder of its own."""
    if init_from is None:
        return None
    path, digest = Path(init_from), hashlib.sha256()
    for part in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """A part of the config as JSON: an object is its class and the arguments that it was made with."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return {
        "class": type(value).__qualname__,
        **{name: plain(one) for name, one in arguments_of(value).items()},
    }


def arguments_of(value: Any) -> dict[str, Any]:
    """What an object was made with: its constructor's arguments, as it keeps them under their names or behind an underscore."""
    names = inspect.signature(type(value)).parameters
    kept = {name: next((n for n in (name, f"_{name}") if hasattr(value, n)), None) for name in names}
    return {name: getattr(value, place) for name, place in kept.items() if place is not None}


_OF_THE_MAIN_STAGE = frozenset({
    "transitions", "reward", "collection", "prompts_per_step", "group_size", "num_passes", "num_transitions", "validation",
    "evaluator", "on_broken", "max_dropped_share", "control",
})  # fmt: skip


def prompt_settings(data: RolloutDataModule) -> dict[str, Any]:
    """Settings that decide what is read and sampled: all of the predictions but those known to concern the main stage alone."""
    given = arguments_of(data.need_predictions())
    own = {name: value for name, value in given.items() if name not in _OF_THE_MAIN_STAGE}
    return own | {"chat_template_kwargs": data.chat_template_kwargs}


def similarity_settings(reward: Any) -> dict[str, Any]:
    """Like :func:`plain` for a reward of which only the similarities are used."""
    unused = {"tau_d", "mode", "batch_size", "device", "cache_size"}
    return {name: value for name, value in plain(reward).items() if name not in unused}
