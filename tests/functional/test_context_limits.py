"""Every key of a config that bounds a context, and the smallest where there are several."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedConfig

from rwml_lightning.functional.context import WINDOWS, ContextLimit, context_limit, rope_limit

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = "beyond which a causal mask alone is wrong"
DYNAMIC = {"rope_type": "dynamic"}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 32}


def config(**keys: Any) -> PreTrainedConfig:
    """A config of these keys alone."""
    made = PreTrainedConfig()
    for name, value in keys.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("name", WINDOWS)
def test_each_kind_of_window(name: str) -> None:
    assert context_limit(config(**{name: 24})) == ContextLimit(24, name, WINDOW)
    assert context_limit(config(**{name: 1})) == ContextLimit(1, name, WINDOW)
    assert rope_limit(config(**{name: 24})) is None
    for none in (0, None):
        assert context_limit(config(**{name: none})) is None


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        ({"layer_types": [FULL, FULL]}, None),
        ({"layer_types": [FULL, SLIDING]}, 24),
        ({"layer_types": [SLIDING]}, 24),
        ({"layer_types": []}, 24),
        ({"layer_types": None}, 24),
        ({"use_sliding_window": False}, None),
        ({"use_sliding_window": True}, 24),
        ({"use_sliding_window": False, "layer_types": [SLIDING]}, None),
        ({"index_topk": 8}, 8),
        ({"index_topk": 80}, 24),
    ],
)
def test_which_windows_count(keys: dict[str, Any], tokens: int | None) -> None:
    limit = context_limit(config(sliding_window=24, **keys))
    assert (limit and limit.tokens) == tokens


@pytest.mark.parametrize(
    ("parameters", "name", "tokens"),
    [
        (None, None, None),
        ({}, None, None),
        ({"rope_type": "default"}, None, None),
        ({"rope_type": "yarn", "factor": 4.0}, None, None),
        (DYNAMIC, "max_position_embeddings", 64),
        (LONG, "original_max_position_embeddings", 32),
        ({FULL: DYNAMIC, SLIDING: {"rope_type": "default"}}, "max_position_embeddings", 64),
        ({FULL: {"rope_type": "default"}, SLIDING: LONG}, "original_max_position_embeddings", 32),
        ({FULL: DYNAMIC, SLIDING: LONG}, "original_max_position_embeddings", 32),
    ],
)
def test_positions_that_change_for_all(parameters: Any, name: str | None, tokens: int | None) -> None:
    made = config(rope_parameters=parameters, max_position_embeddings=64)
    limit = rope_limit(made)
    assert context_limit(made) == limit
    if limit is None:
        assert name is None
    else:
        kind = "longrope" if name == "original_max_position_embeddings" else "dynamic"
        reason = f"beyond which its {kind} positions change for all sequences of a forward pass"
        assert limit == ContextLimit(tokens, name, reason)


def test_the_smallest_limit_of_a_model_with_a_text_part() -> None:
    text = config(sliding_window=48, rope_parameters=DYNAMIC, max_position_embeddings=64)
    whole = config(sliding_window=2)
    whole.get_text_config = lambda: text  # type: ignore[method-assign]
    assert context_limit(whole) == ContextLimit(48, "sliding_window", WINDOW)
    limit = rope_limit(whole)
    assert limit is not None
    assert limit.tokens == 64
