"""How many tokens of a sequence a model treats alike, with one causal mask and one scale of positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "index_topk")
"""Config keys for the keys that a query sees, or chooses among all before it."""


class ContextLimit(NamedTuple):
    """Longest sequence that a model treats alike.

    Args:
        tokens: Number of its tokens.
        name: Config key that says so.
        reason: What happens beyond it.
    """

    tokens: int
    name: str
    reason: str


def context_limit(config: Any) -> ContextLimit | None:
    """The shortest of a model's attention windows and of its :func:`rope_limit`; ``None`` when it has none.

    Args:
        config: Config of a Hugging Face model.
    """
    return min((*_windows(config.get_text_config()), *_ropes(config.get_text_config())), default=None)


def rope_limit(config: Any) -> ContextLimit | None:
    """Longest sequence before the rotary embedding changes for every token of a call, the first ones included.

    LongRoPE chooses its factors, and dynamic NTK its base, by the longest position of a call. What shares a call with
    a sequence beyond the limit gets other log-probabilities than alone.

    Args:
        config: Config of a Hugging Face model.
    """
    return min(_ropes(config.get_text_config()), default=None)


def _windows(config: Any) -> Iterator[ContextLimit]:
    kinds = getattr(config, "layer_types", None)
    if (kinds and set(kinds) == {"full_attention"}) or not getattr(config, "use_sliding_window", True):
        return
    for name in WINDOWS:
        tokens = getattr(config, name, None)
        if tokens:  # some configs write "no window" as 0
            yield ContextLimit(tokens, name, "beyond which a causal mask alone is wrong")


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """Settings of a model's rotary embedding, and those of its kinds of layers where each has its own.

    Args:
        config: Config of a Hugging Face language model.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]


def _ropes(config: Any) -> Iterator[ContextLimit]:
    for rope in rope_settings(config):
        match rope.get("rope_type"):
            case "longrope":
                name = "original_max_position_embeddings"
                tokens = rope[name]
            case "dynamic":
                name = "max_position_embeddings"
                tokens = config.max_position_embeddings
            case _:
                continue
        reason = f"beyond which its {rope['rope_type']} positions change for all sequences of a call"
        yield ContextLimit(tokens, name, reason)
