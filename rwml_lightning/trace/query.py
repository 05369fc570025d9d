"""Filters and sort order of the list of groups, converted to SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Literal, get_args

from rwml_lightning.printable import well_formed
from rwml_lightning.trace.records import TRANSITION_COLUMNS, GroupSummary

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "contains"]

JOIN_TRANSITIONS = "LEFT JOIN transitions ON transitions.id = groups.transition_key"
JOIN_TASK = "LEFT JOIN texts AS task ON task.id = transitions.task"
_EXPRESSIONS = {"task": "task.body"} | {name: f"transitions.{name}" for name in TRANSITION_COLUMNS}
COLUMNS: Mapping[str, str] = {
    field.name: _EXPRESSIONS.get(field.name, f"groups.{field.name}")
    for field in fields(GroupSummary)
    if field.name != "rewards"
}
"""SQL expression of each field of a :class:`GroupSummary` by which groups can be filtered and sorted."""
OPERATORS = get_args(Operator)


def column(name: str) -> str:
    """Return the SQL expression of a column, or raise a ValueError that names the most similar column."""
    if name not in COLUMNS:
        near = get_close_matches(name, COLUMNS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known columns are {', '.join(COLUMNS)}"
        raise ValueError(f"no column {name!r} in the list of groups: {hint}")
    return COLUMNS[name]


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on one column, for example ``Filter("mean_reward", ">=", 0.5)``.

    Numbers are compared as numbers. ``contains`` searches for a substring and ignores (ASCII) case.
    """

    column: str
    operator: Operator
    value: float | str

    def sql(self) -> tuple[str, float | str]:
        """Return the SQL condition with one placeholder, and its value."""
        if self.operator not in OPERATORS:
            raise ValueError(f"no operator {self.operator!r}: known operators are {', '.join(OPERATORS)}")
        if self.operator == "contains":
            escaped = re.sub(r"([\\%_])", r"\\\1", str(self.value))
            return f"{column(self.column)} LIKE ? ESCAPE '\\'", f"%{escaped}%"
        return f"{column(self.column)} {self.operator} ?", self.value


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """Filters and order of a list of groups.

    Args:
        stage: Stage of the groups, or ``None`` for all stages.
        source: ``train``, the name of an evaluation, or ``None`` for all sources.
        order_by: Name in :data:`COLUMNS`. Groups without a value come last; groups with equal values come newest first.
        descending: Whether the largest value comes first.
        filters: Conditions that a group must all satisfy.
        search: Words that must all occur in the group's action, real next state or predicted next states. The last word
            may be incomplete.
    """

    stage: str | None = None
    source: str | None = None
    order_by: str = "id"
    descending: bool = True
    filters: tuple[Filter, ...] = ()
    search: str = ""

    def where(self) -> tuple[str, list[float | str]]:
        """Return the ``FROM ... WHERE ...`` clause and its values. It joins only the tables that the query uses."""
        filters = list(self.filters)
        filters += [Filter("stage", "=", self.stage)] if self.stage is not None else []
        filters += [Filter("source", "=", self.source)] if self.source is not None else []
        parts = [condition.sql() for condition in filters]
        conditions = [condition for condition, _ in parts]
        values = [value for _, value in parts]
        if self.search.strip():
            conditions.append("groups.id IN (SELECT rowid FROM group_search WHERE group_search MATCH ?)")
            values.append(match_expression(self.search))
        tables = {
            column(name).partition(".")[0]
            for name in (self.order_by, *(condition.column for condition in filters))
        }
        joins = [JOIN_TRANSITIONS] if tables & {"transitions", "task"} else []
        joins += [JOIN_TASK] if "task" in tables else []
        return f"FROM groups {' '.join(joins)} WHERE {' AND '.join(conditions) or '1'}", values

    def order(self) -> str:
        """Return the ``ORDER BY`` clause."""
        direction = "DESC" if self.descending else "ASC"
        if self.order_by in ("id", "step"):
            return f"ORDER BY {column(self.order_by)} {direction}, groups.id {direction}"
        return f"ORDER BY {column(self.order_by)} {direction} NULLS LAST, groups.id DESC"


def match_expression(search: str) -> str:
    """Return the FTS5 expression for words that a user typed. No part of the words is read as FTS5 syntax."""
    words = re.findall(r"\w+", well_formed(search))
    quoted = " AND ".join(f'"{word}"' for word in words)
    return f"{quoted} *" if words else '""'  # the empty phrase matches nothing
