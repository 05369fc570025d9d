"""TextWorld's text grammar, expanded without re-parsing or copying: the same text as the stock class, much sooner.

The stock grammar parses its start template with a PEG parser at every call, and deep-copies symbols and contexts at every
expansion. Here each template is parsed once in a process and turned into a function from context to text.

Templates in a game file hold small expressions (``o.indefinite + ' ' + o.name``) that the stock class hands to ``eval``.
Here the four forms that games use are computed and all else is refused: a game file from a stranger cannot run code.
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, reduce
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from textworld.envs.pddl import textgen
from textworld.generator.game import EntityInfo
from textworld.logic import Placeholder, Rule, Variable


class FactSource(Protocol):
    """What a grammar asks of a game state."""

    def assignments(
        self, rule: Rule, mapping: Mapping[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        """All extensions of ``mapping`` under which the preconditions of ``rule`` hold."""
        ...


class Context(NamedTuple):
    """What a template is expanded in.

    Args:
        state: Facts that conditions are checked against.
        mapping: Placeholders that are bound already.
        variables: Entity behind each name that an expression may use.
        entities: Entity of each id.
    """

    state: FactSource
    mapping: Mapping[Placeholder, Variable]
    variables: Mapping[str, Any]
    entities: Mapping[str, Any]


Expander = Callable[[Context], list[str]]
Value = Callable[[Mapping[str, Any]], Any]
"""An expression's value, given the entity behind each name."""


@lru_cache(maxsize=4096)
def _parse_template(text: str) -> tuple[textgen.Symbol, ...]:
    # Private to TextWorld, but the only way to its parser; the version is pinned by the extra.
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
            f"the game's grammar holds the expression {reprlib.repr(expression)}; only names, attributes of entities, texts, '+' and "
            "'or' are computed"
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
            return reduce(_either, map(_value, parts))
    raise ValueError(f"no form of the grammar: {type(node).__name__}")


def _either(first: Value, second: Value) -> Value:
    return lambda variables: first(variables) or second(variables)


class TemplateGrammar(textgen.ContextSensitiveGrammar):
    """A context-sensitive grammar with the stock class's rules and its text.

    Args:
        rules: Grammar whose production rules are taken over.
    """

    def __init__(self, rules: textgen.ContextSensitiveGrammar) -> None:
        super().__init__()
        self.update(rules)
        self._templates: dict[str, list[Expander]] = {}
        self._productions: dict[str, list[tuple[Rule | None, list[Expander]]]] = {}

    def expand(self, template: str, context: Context) -> str:
        """Text of a template such as ``#look.feedback#``."""
        expanders = self._templates.get(template)
        if expanders is None:
            expanders = self._templates[template] = [
                self._expander(symbol) for symbol in _parse_template(template)
            ]
        return "".join(part for expander in expanders for part in expander(context))

    def predicates(self, template: str) -> frozenset[str]:
        """Names of all predicates that the text of ``template`` can depend on."""
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
        """The function from context to texts that stands for one parsed symbol."""
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
            inner, query = (
                self._expander(symbol.expression),
                parse_query(symbol.given) if symbol.given else None,
            )
            return lambda context: ["".join(inner(case)) for case in _cases(query, context)]
        if isinstance(symbol, textgen.ListSymbol):
            items = self._expander(symbol.symbol)
            return lambda context: self._enumerate(items(context), context)
        raise ValueError(f"the game's grammar holds a symbol of unknown type {type(symbol).__name__}")

    def _expand_production(self, name: str, context: Context) -> list[str]:
        """Expand the first production of ``name`` whose condition holds."""
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
        raise ValueError(f"the game's grammar has no production for '#{name}#' that applies")

    def _enumerate(self, items: list[str], context: Context) -> list[str]:
        """Join the texts of a list as the grammar says: ``a, b, and c``."""
        if not items:
            return self._expand_production("list_empty", context)
        if len(items) == 1:
            return items
        separator = "".join(self._expand_production("list_separator", context))
        last_separator = "".join(self._expand_production("list_last_separator", context))
        return [separator.join(items[:-1]), last_separator, items[-1]]


def _cases(query: Rule | None, context: Context) -> Iterator[Context]:
    """One context for each way in which the query holds."""
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
