"""Parser for the search line of the list of groups: ``reward>0.5 kind=navigation step>=10 mug``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from rwml_lightning.trace import COLUMNS, Filter, GroupQuery
from rwml_lightning.trace.query import Operator, column

NAMES: Mapping[str, str] = {
    "reward": "mean_reward",
    "similarity": "mean_similarity",
    "best": "best_similarity",
    "tokens": "mean_tokens",
    "formed": "well_formed",
    "equal": "zero_variance",
    "transition": "transition_id",
    "policy": "policy_version",
}
"""Short names for columns; the names of :data:`rwml_lightning.trace.COLUMNS` work too."""
TEXT_COLUMNS = frozenset(
    {"stage", "source", "transition_id", "environment", "game", "kind", "split", "action", "task"}
)
_OPERATORS: Mapping[str, Operator] = {**{name: name for name in get_args(Operator)}, "~": "contains"}
_CONDITION = re.compile(
    r'(?P<name>[A-Za-z_]+)(?P<operator><=|>=|!=|=|<|>|~)(?:"(?P<quoted>[^"]*)"?|(?P<plain>\S*))'
)


def parse_query_line(line: str) -> GroupQuery:
    """Parse conditions ``name operator value``, without spaces around the operator, and words to search for.

    Operators are ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` and ``~`` (contains). A value with spaces needs double quotes.
    A group must meet all conditions and contain all words.

    Raises:
        ValueError: A column is unknown, or the value of a number column is not a number. The message is one line.
    """
    filters = tuple(_condition(match) for match in _CONDITION.finditer(line))
    return GroupQuery(filters=filters, search=" ".join(_CONDITION.sub(" ", line).split()))


def _condition(match: re.Match[str]) -> Filter:
    name = match["name"].lower()
    name = NAMES.get(name, name)
    column(name)  # raises if the column is unknown
    text = match["quoted"] if match["quoted"] is not None else match["plain"]
    operator = _OPERATORS[match["operator"]]
    if name in TEXT_COLUMNS or operator == "contains":
        return Filter(name, operator, text)
    if text.lower() in ("yes", "true", "no", "false"):
        return Filter(name, operator, float(text.lower() in ("yes", "true")))
    try:
        return Filter(name, operator, float(text))
    except ValueError:
        raise ValueError(f"{match['name']} needs a number, not {text or 'nothing'!r}") from None


assert set(NAMES.values()) | TEXT_COLUMNS <= set(COLUMNS)
