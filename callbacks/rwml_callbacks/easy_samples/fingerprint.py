"""Fingerprints of the inputs of a stored result (config, transitions, weights) as JSON that can be compared."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.schema import Transition


def digest_of_names(transitions: Sequence[Transition]) -> str:
    """Return a digest of the transitions' ids that does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(t.transition_id for t in transitions)).encode()).hexdigest()


def digest_of_weights(init_from: str | None) -> str | None:
    """Return a digest of the weights themselves, not of their path: each run has its own warm-up folder."""
    if init_from is None:
        return None
    path, digest = Path(init_from), hashlib.sha256()
    for part in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Convert a part of the config to JSON; an object becomes its class name and constructor arguments."""
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
    """Return an object's constructor arguments, as stored in its attributes ``name`` or ``_name``."""
    names = inspect.signature(type(value)).parameters
    kept = {name: next((n for n in (name, f"_{name}") if hasattr(value, n)), None) for name in names}
    return {name: getattr(value, place) for name, place in kept.items() if place is not None}


_OF_THE_MAIN_STAGE = frozenset({
    "transitions", "reward", "collection", "prompts_per_step", "group_size", "num_passes", "num_transitions", "validation",
    "evaluator", "on_broken", "max_dropped_share", "control",
})  # fmt: skip


def prompt_settings(data: RolloutDataModule) -> dict[str, Any]:
    """Return the settings that prompts and sampled answers depend on, without those of the main stage alone."""
    given = arguments_of(data.need_predictions())
    own = {name: value for name, value in given.items() if name not in _OF_THE_MAIN_STAGE}
    return own | {"chat_template_kwargs": data.chat_template_kwargs}


def similarity_settings(reward: Any) -> dict[str, Any]:
    """Convert a reward to JSON as :func:`plain` does, without the settings that do not affect its similarities."""
    unused = {"tau_d", "mode", "batch_size", "device", "cache_size"}
    return {name: value for name, value in plain(reward).items() if name not in unused}
