"""Tool replies as schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("genson")

from rwml_lightning.envs.tau2.schemas import reply_schema


def test_a_reply_by_hand() -> None:
    reply = {
        "user_id": "sara_doe_496",
        "age": 30,
        "orders": [{"id": "#W1", "paid": True}, {"id": "#W2", "paid": None}],
        "cards": {"card_1": {"balance": 3.5}, "card_2": {"balance": 4}},
    }
    assert json.loads(reply_schema(json.dumps(reply))) == {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "age": {"type": "integer"},
            "orders": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"id": {"type": "string"}, "paid": {"type": ["boolean", "null"]}},
                },
            },
            "cards": {
                "type": "object",
                "additionalProperties": {"type": "object", "properties": {"balance": {"type": "number"}}},
            },
        },
    }


@pytest.mark.parametrize(
    "reply", ["Roaming enabled successfully", "3.5", '"done"', "true", "", "{not json", "[" * 5000]
)
def test_statuses_stay_text(reply: str) -> None:
    assert reply_schema(reply) == reply


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["one", "two", "id_1", "id_2"]), inner)
    ),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list))


def values_replaced(value: Any) -> Any:
    """The same shape with other values."""
    if isinstance(value, dict):
        return {key: values_replaced(one) for key, one in value.items()}
    if isinstance(value, list):
        return [values_replaced(one) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    return {int: 7, float: 7.5, str: "seven"}[type(value)]


@given(value=JSON)
def test_only_the_shape_counts(value: Any) -> None:
    assert reply_schema(json.dumps(value)) == reply_schema(json.dumps(values_replaced(value)))
