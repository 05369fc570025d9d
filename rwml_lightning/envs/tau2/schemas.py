"""Reduction of tool replies to their predictable part: types without values (arXiv 2602.05842, tau2-bench)."""

from __future__ import annotations

import json
from typing import Any

from genson import SchemaBuilder
from genson.schema.node import SchemaNode
from genson.schema.strategies import Object, SchemaStrategy


class _Records(SchemaStrategy):
    """Strategy for objects that map identifiers to records of one type. The keys are data, so the schema leaves them out."""

    KEYWORDS = ("type", "additionalProperties")

    def __init__(self, node_class: type[SchemaNode]) -> None:
        super().__init__(node_class)
        self._values = node_class()

    @classmethod
    def match_schema(cls, schema: dict[str, Any]) -> bool:
        return schema.get("type") == "object" and "additionalProperties" in schema

    @classmethod
    def match_object(cls, value: Any) -> bool:
        return isinstance(value, dict) and bool(value) and all(_is_identifier(key) for key in value)

    def add_object(self, value: dict[str, Any]) -> None:
        for record in value.values():
            self._values.add_object(record)

    def to_schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self._values.to_schema()}


class _Properties(Object):
    """Strategy for all other objects, without ``required``."""

    def to_schema(self) -> dict[str, Any]:
        schema = super().to_schema()
        schema.pop("required", None)
        return schema


def _is_identifier(key: str) -> bool:
    return any(character.isdigit() for character in key)


class _Builder(SchemaBuilder):
    EXTRA_STRATEGIES = (_Records, _Properties)


def reply_schema(reply: str) -> str:
    """Return the schema of a JSON reply as compact JSON. Any other reply, such as a short status, is returned unchanged.

    An object in which every key contains a digit is a map from identifiers to records, and becomes ``additionalProperties``. The
    schema has no ``required``, since all properties are required. A single number or quoted text counts as a status, not as JSON.
    """
    try:
        value = json.loads(reply)
    except (json.JSONDecodeError, RecursionError):
        return reply
    if not isinstance(value, dict | list):
        return reply
    builder = _Builder(schema_uri=None)
    builder.add_object(value)
    return json.dumps(builder.to_schema(), separators=(",", ":"))
