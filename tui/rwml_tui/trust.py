"""Lists the code, weights and servers that a run's config names, so that the user can decide whether to start it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_NAMES = ("class_path", "id", "model", "init_from", "embedder", "base_url", "api_key_env")
"""Config keys that name code, weights, servers or variables with API keys."""


def named_in(config: Path) -> list[tuple[str, str]]:
    """Return key and value of each config entry that names code, weights or servers; one entry with the error if it is unreadable."""
    try:
        return list(_walk(yaml.safe_load(config.read_bytes()), "", set()))
    except (yaml.YAMLError, OSError, UnicodeError, RecursionError) as error:
        return [(config.name, f"cannot be read: {type(error).__name__}")]


def _walk(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    # An object that YAML aliases repeat is walked once.
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        inner = f"{key}.{name}".removeprefix(".")
        if name in _NAMES and isinstance(part, str):
            yield inner, part
        yield from _walk(part, inner, seen)
