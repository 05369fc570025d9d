"""What a run's config has a process import, load and call, so that a person can say whether to start it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_NAMES = ("class_path", "id", "model", "init_from", "embedder", "base_url", "api_key_env")
"""Keys of a config that name code, weights, servers and keys."""


def named_in(config: Path) -> list[tuple[str, str]]:
    """Key and value of whatever names code, weights or servers in a config; a file that is no YAML names itself."""
    try:
        return list(_walk(yaml.safe_load(config.read_bytes()), "", set()))
    except (yaml.YAMLError, OSError, UnicodeError, RecursionError) as error:
        return [(config.name, f"cannot be read: {type(error).__name__}")]


def _walk(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    if (
        not isinstance(value, dict | list) or id(value) in seen
    ):  # what YAML repeats by reference is walked once
        return
    seen.add(id(value))
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        inner = f"{key}.{name}".removeprefix(".")
        if name in _NAMES and isinstance(part, str):
            yield inner, part
        yield from _walk(part, inner, seen)
