"""Fast version of TextWorld's text grammar, with the same text as the stock class.

The stock grammar parses its start template with a PEG parser at every call, and copies symbols and contexts deeply at every
expansion. This module parses each template once in a process and turns it into a function from context to text.

Templates in a game file contain small expressions (``o.indefinite + ' ' + o.name``), which the stock class evaluates with ``eval``.
This module computes the forms that games use and raises an error for any other expression, so a game file from an untrusted source
cannot run code.
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, reduce
from operator import itemgetter
from typing import Any, NamedTuple

from textworld.envs.pddl import textgen
from textworld.generator.game import EntityInfo
from textworld.logic import Placeholder, Rule, Variable

from rwml_lightning.envs.alfworld.state import FastState


class Context(NamedTuple):
    """Context in which a template is expanded.

    Args:
        state: Game state that conditions are checked against.
        mapping: Variable of each bound placeholder.
        variables: Entity of each name that an expression may use.
        entities: Entity by id.
    """

    state: FastState
    mapping: Mapping[Placeholder, Variable]
    variables: Mapping[str, Any]
    entities: Mapping[str, Any]


Expander = Callable[[Context], list[str]]
Value = Callable[[Mapping[str, Any]], Any]
"""Function from the entity of each name to the value of an expression."""


@lru_cache(maxsize=4096)
def _parse_template(text: str) -> tuple[textgen.Symbol, ...]:
    # This function is private to TextWorld, but there is no public access to the parser. The extra pins the version.
    return tuple(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(maxsize=4096)
def parse_query(expression: str) -> Rule:
    """Parse a conjunction such as ``openable(r:receptacle) & opened(r:receptacle)``, once in a process."""
    return Rule.parse_conjunctive_query(expression)


@lru_cache(maxsize=4096)
def _read_expression(expression: str) -> Value:
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the game's grammar contains the expression {reprlib.repr(expression)}; only names, attributes of entities, texts, '+' and "
            "'or' are allowed"
        ) from error

    def text(variables: Mapping[str, Any]) -> str:
        try:
            return str(value(variables))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the expression {reprlib.repr(expression)} in the game's grammar has no value: {error}"
            ) from error

    return text


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Name(id=name):
            return itemgetter(name)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute in EntityInfo.__slots__:
            return lambda variables: getattr(variables[name], attribute)
        case ast.Constant(value=str(text)):
            return lambda variables: text
        case ast.BinOp(left=first, op=ast.Add(), right=second):
            left, right = _value(first), _value(second)
            return lambda variables: left(variables) + right(variables)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return reduce(_first_true, map(_value, parts))
    raise ValueError(f"unsupported form of expression: {type(node).__name__}")


def _first_true(first: Value, second: Value) -> Value:
    return lambda variables: first(variables) or second(variables)


class TemplateGrammar(textgen.ContextSensitiveGrammar):
    """Context-sensitive grammar with the same rules and text as the stock class.

    Args:
        rules: Grammar from which the production rules are copied.
    """

    def __init__(self, rules: textgen.ContextSensitiveGrammar) -> None:
        super().__init__()
        self.update(rules)
        self._templates: dict[str, list[Expander]] = {}
        self._productions: dict[str, list[tuple[Rule | None, list[Expander]]]] = {}

    def expand(self, template: str, context: Context) -> str:
        """Return the text of a template such as ``#look.feedback#``."""
        expanders = self._templates.get(template)
        if expanders is None:
            expanders = self._templates[template] = [
                self._expander(symbol) for symbol in _parse_template(template)
            ]
        return "".join(part for expander in expanders for part in expander(context))

    def predicates(self, template: str) -> frozenset[str]:
        """Return the names of all predicates that can affect the text of ``template``."""
        names: set[str] = set()
        seen: set[str] = set()
        pending: list[textgen.Symbol] = list(_parse_template(template))
        while pending:
            symbol = pending.pop()
            conditions: list[str] = []
            if isinstance(symbol, textgen.NonterminalSymbol) and str(symbol) not in seen:
                seen.add(str(symbol))
                rules = self._rules.get(str(symbol), [])
                conditions = [rule.condition for rule in rules if rule.condition]
                pending += [part for rule in rules for part in rule.rhs]
            elif isinstance(symbol, textgen.ConditionalSymbol):
                conditions = [symbol.given] if symbol.given else []
                pending.append(symbol.expression)
            elif isinstance(symbol, textgen.ListSymbol):
                pending.append(symbol.symbol)
            names.update(
                predicate.name for text in conditions for predicate in parse_query(text).preconditions
            )
        return frozenset(names)

    def _expander(self, symbol: textgen.Symbol) -> Expander:
        """Return the function from context to texts for one parsed symbol."""
        if isinstance(symbol, textgen.TerminalSymbol):
            constant = [str(symbol)]
            return lambda context: constant
        if isinstance(symbol, textgen.NonterminalSymbol):
            name = str(symbol)
            return lambda context: self._expand_production(name, context)
        if isinstance(symbol, textgen.EvalSymbol):
            value = _read_expression(symbol.expression)
            return lambda context: [value(context.variables)]
        if isinstance(symbol, textgen.ConditionalSymbol):
            inner = self._expander(symbol.expression)
            query = parse_query(symbol.given) if symbol.given else None
            return lambda context: ["".join(inner(case)) for case in _matching_contexts(query, context)]
        if isinstance(symbol, textgen.ListSymbol):
            items = self._expander(symbol.symbol)
            return lambda context: self._enumerate(items(context), context)
        raise ValueError(f"the game's grammar contains a symbol of unknown type {type(symbol).__name__}")

    def _expand_production(self, name: str, context: Context) -> list[str]:
        """Expand the first production of ``name`` with a true condition, or without a condition."""
        productions = self._productions.get(name)
        if productions is None:
            productions = self._productions[name] = [
                (
                    parse_query(rule.condition) if rule.condition else None,
                    [self._expander(symbol) for symbol in rule.rhs],
                )
                for rule in self._rules.get(name, [])
            ]
        for condition, expanders in productions:
            if (
                condition is None
                or next(context.state.assignments(condition, context.mapping), None) is not None
            ):
                return [part for expander in expanders for part in expander(context)]
        raise ValueError(f"the game's grammar has no applicable production for '#{name}#'")

    def _enumerate(self, items: list[str], context: Context) -> list[str]:
        """Join the texts of a list with the separators of the grammar: ``a, b, and c``."""
        if not items:
            return self._expand_production("list_empty", context)
        if len(items) == 1:
            return items
        separator = "".join(self._expand_production("list_separator", context))
        last_separator = "".join(self._expand_production("list_last_separator", context))
        return [separator.join(items[:-1]), last_separator, items[-1]]


def _matching_contexts(query: Rule | None, context: Context) -> Iterator[Context]:
    """Yield one context for each binding under which the query holds."""
    if query is None:
        yield context
        return
    for mapping in context.state.assignments(query, context.mapping):
        found = {
            placeholder.name: context.entities[variable.name] for placeholder, variable in mapping.items()
        }
        yield context._replace(
            mapping={**context.mapping, **mapping}, variables={**context.variables, **found}
        )
