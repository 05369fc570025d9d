"""Context limits: longest sequences for which one causal mask and one set of position frequencies are correct."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "index_topk")
"""Config keys for the number of keys that a query attends to or selects from all earlier ones."""


class ContextLimit(NamedTuple):
    """Longest sequence within a limit of a model.

    Args:
        tokens: Limit, in tokens.
        name: Config key that sets the limit.
        reason: Clause that says what happens beyond the limit, for error messages.
    """

    tokens: int
    name: str
    reason: str


def context_limit(config: Any) -> ContextLimit | None:
    """Return the smallest limit among the attention windows of a model and its :func:`rope_limit`, or ``None``.

    Args:
        config: Config of a Hugging Face model.
    """
    return min((*_windows(config.get_text_config()), *_ropes(config.get_text_config())), default=None)


def rope_limit(config: Any) -> ContextLimit | None:
    """Return the limit beyond which the rotary embedding changes for every token of a forward pass, even the first ones.

    LongRoPE chooses its factors, and dynamic NTK its base, by the largest position in a forward pass. A sequence in the same
    forward pass as one beyond the limit therefore gets other log-probabilities than alone.

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
    """Return the settings of the rotary embedding, and the settings per layer type if a model has them.

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
        reason = f"beyond which its {rope['rope_type']} positions change for all sequences of a forward pass"
        yield ContextLimit(tokens, name, reason)
