"""State of an ALFWorld game. The PDDL is translated once; Python holds the facts, and Fast Downward's library the task.

Import this module through ``extra.import_engine``.
"""

from __future__ import annotations

import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import fast_downward
from fast_downward.translate.pddl.conditions import Atom as InitialAtom
from textworld.envs.pddl import logic
from textworld.logic import Placeholder, Proposition, Rule, Signature, Type, Variable

_TRANSLATED_GAMES = 256
_translation_lock = threading.Lock()


class Parameter(NamedTuple):
    """Parameter of an action, with the attribute names that TextWorld expects for planner output."""

    name: str
    type_name: str


class ActionSchema(NamedTuple):
    """Action of the PDDL domain."""

    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class TranslatedGame:
    """Parts of a translated PDDL problem that the game needs.

    Args:
        sas: Task in Fast Downward's format, compressed (uncompressed 1 to 2 MB).
        actions: Action schema by name.
        types: Types in the order of the domain.
        type_of: Type of each object.
        facts: Initial facts of the problem.
        fluents: Predicates that an action or axiom can change.
    """

    sas: bytes
    actions: Mapping[str, ActionSchema]
    types: tuple[Type, ...]
    type_of: Mapping[str, str]
    facts: tuple[Proposition, ...]
    fluents: frozenset[str]


def _pddl2sas(domain: str, problem: str, optimize: bool) -> tuple[Any, str]:
    """Translate PDDL under a lock, and restore ``sys.argv``.

    Fast Downward's translator overwrites ``sys.argv``, replaces ``sys.stdout`` and is not thread-safe.
    """
    with _translation_lock:
        arguments = sys.argv
        try:
            return fast_downward.pddl2sas(domain, problem, optimize=optimize)
        except SystemExit as error:  # its parser reports a syntax error in this way
            raise ValueError(f"its PDDL cannot be translated: {error}") from error
        finally:
            sys.argv = arguments


@lru_cache(maxsize=_TRANSLATED_GAMES)
def translate(domain: str, problem: str) -> TranslatedGame:
    """Translate a PDDL problem. The translations of the most recent games are cached.

    Raises:
        ValueError: The PDDL is malformed.
    """
    task, sas = _pddl2sas(domain, problem, optimize=False)
    type_of = {thing.name: thing.type_name for thing in task.objects}
    actions = {
        action.name: ActionSchema(
            action.name, tuple(Parameter(p.name, p.type_name) for p in action.parameters)
        )
        for action in task.actions
    }
    facts = tuple(
        Proposition(atom.predicate, [Variable(argument, type_of[argument]) for argument in atom.args])
        for atom in task.init
        if isinstance(atom, InitialAtom) and atom.predicate != "="
    )
    changed = {effect.literal.predicate for action in task.actions for effect in action.effects}
    fluents = frozenset(changed | {axiom.name for axiom in task.axioms})
    types = tuple(Type(kind.name, kind.supertype_names) for kind in task.types)
    return TranslatedGame(zlib.compress(sas.encode(), 1), actions, types, type_of, facts, fluents)


class FastState(logic.PddlState):
    """State of a game, with the facts in Python for the text and the task in Fast Downward's library.

    Args:
        downward_lib: This environment's own copy of the library.
        problem: PDDL problem.
        game_logic: Grammar and actions.
        game: Translated problem.
    """

    def __init__(
        self, downward_lib: Any, problem: str, game_logic: logic.GameLogic, game: TranslatedGame
    ) -> None:
        self._logic = game_logic
        self.downward_lib = downward_lib
        self.pddl_problem = problem
        self.game = game
        self._actions = game.actions
        self.name2type = game.type_of
        known = {kind.name for kind in game_logic.types}
        for kind in game.types:
            if kind.name not in known:
                known.add(kind.name)
                game_logic.types.add(kind)

        self._facts: dict[Any, set[Proposition]] = defaultdict(set)
        self._ordered: dict[Any, list[Proposition]] = {}
        self._load_task()
        atoms = (logic.Atom * downward_lib.get_state_size())()
        downward_lib.get_state(atoms)
        self.add_facts(game.facts)
        self.add_facts(
            fact for fact in (atom.get_fact(game.type_of) for atom in atoms) if not fact.is_negation
        )
        self._initial_facts = {signature: frozenset(facts) for signature, facts in self._facts.items()}

    def _load_task(self) -> None:
        self.downward_lib.load_sas(zlib.decompress(self.game.sas))
        self._replan_loaded = False

    def restart(self) -> None:
        """Go back to the initial state."""
        self._load_task()
        self._facts = defaultdict(
            set, {signature: set(facts) for signature, facts in self._initial_facts.items()}
        )
        self._ordered.clear()

    def add_fact(self, prop: Proposition) -> None:
        """Make a fact true."""
        self._facts[prop.signature].add(prop)
        self._ordered.clear()

    def remove_fact(self, prop: Proposition) -> None:
        """Make a fact false."""
        self._facts[prop.signature].discard(prop)
        self._ordered.clear()

    def assignments(
        self, rule: Rule, mapping: Mapping[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        """Yield all bindings of the placeholders of a query, in the stock order. Different placeholders get different variables."""
        return self._match(rule.preconditions, 0, dict(mapping))

    def _match(
        self, predicates: Sequence[Any], depth: int, mapping: dict[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        if depth == len(predicates):
            yield mapping
            return
        predicate = predicates[depth]
        bound = [mapping.get(placeholder) for placeholder in predicate.parameters]
        if None not in bound:
            fact = Proposition(predicate.name, bound)
            if fact in self._facts.get(fact.signature, ()):
                yield from self._match(predicates, depth + 1, mapping)
            return
        for fact in self._facts_matching(predicate.signature):
            if any(
                known is not None and known.name != found.name
                for known, found in zip(bound, fact.arguments, strict=True)
            ):
                continue
            extended = _bind(predicate.parameters, fact.arguments, mapping)
            if extended is not None:
                yield from self._match(predicates, depth + 1, extended)

    def _facts_matching(self, signature: Any) -> list[Proposition]:
        """Return the facts with a signature or a subtype's signature, sorted within each signature."""
        facts = self._ordered.get(signature)
        if facts is None:
            types = [self._logic.types.get(name) for name in signature.types]
            facts = []
            for subtypes in self._logic.types.multi_subtypes(types):
                group = self._facts.get(Signature(signature.name, [kind.name for kind in subtypes]))
                facts += sorted(group, key=_fact_order) if group else []
            self._ordered[signature] = facts
        return facts

    def replan(self, infos: Mapping[str, Any]) -> list[str]:
        """Return the planner's commands to the goal. The list is empty if there is no plan. This is slow."""
        if not self._replan_loaded:
            _, sas = _pddl2sas(self._logic.domain, self.pddl_problem, optimize=True)
            self.downward_lib.load_sas_replan(sas.encode())
            self._replan_loaded = True
        return super().replan(infos)


def _fact_order(fact: Proposition) -> tuple[Any, ...]:
    return tuple((argument.name, argument.type) for argument in fact.arguments)


def _bind(
    placeholders: Any, variables: Any, mapping: dict[Placeholder, Variable]
) -> dict[Placeholder, Variable] | None:
    """Return ``mapping`` with the placeholders bound to the variables, or ``None`` if they contradict it."""
    extended = dict(mapping)
    for placeholder, variable in zip(placeholders, variables, strict=True):
        known = extended.get(placeholder)
        if known is None:
            if variable in extended.values():
                return None
            extended[placeholder] = variable
        elif known != variable:
            return None
    return extended
