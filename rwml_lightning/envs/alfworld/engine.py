"""ALFWorld's engine on a fast path: the same text, admissible commands, won, score and done as TextWorld's ``PddlEnv``.

What the stock engine repeats is done once: the grammar is parsed once for each game and its templates once in a process
(``textgen``), PDDL is translated once for each game and kept (most recent games, compressed), the second translation that
only the planner needs is made when a plan is asked for, and the command of an operator is derived once where no fact that
an action changes can alter it. Rules, states and goals are still TextWorld's and Fast Downward's own.

Nothing is patched: everything here is a subclass. Import it through ``extra.import_engine``.
"""

from __future__ import annotations

import json
import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from fast_downward.translate.pddl.conditions import Atom as InitialAtom
from textworld.core import GameState
from textworld.envs import PddlEnv
from textworld.envs.pddl import logic
from textworld.logic import Placeholder, Proposition, Rule, Type, Variable

from rwml_lightning.envs.alfworld.textgen import Context, TemplateGrammar

_TRANSLATED_GAMES = 256
_translation_lock = threading.Lock()
# Each environment plays in a copy of the library of its own. A copy is never unloaded: copies share a C++ registry of
# functions that lie in all of them, and the process would crash at exit.
_idle_libraries: list[Any] = []


class Parameter(NamedTuple):
    """One parameter of an action, under the names that TextWorld's planner output expects."""

    name: str
    type_name: str


class ActionSchema(NamedTuple):
    """An action of the PDDL domain."""

    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class TranslatedGame:
    """What play needs of a translated PDDL problem.

    Args:
        sas: Task in Fast Downward's format, compressed (1 to 2 MB otherwise).
        actions: Action schemas by name.
        types: Types in the order of the domain.
        type_of: Type of each object.
        facts: Initial facts of the problem.
        fluents: Predicates that some action or axiom changes.
    """

    sas: bytes
    actions: Mapping[str, ActionSchema]
    types: tuple[Type, ...]
    type_of: Mapping[str, str]
    facts: tuple[Proposition, ...]
    fluents: frozenset[str]


class Operation(NamedTuple):
    """A grounded action that applies now.

    Args:
        operator_id: Fast Downward's number of the operator.
        num_effects: How many atoms it changes at most.
        command: What the player types.
        feedback_rule: Template of the answer.
        mapping: Variable behind each placeholder of the action.
        variables: Entity behind each placeholder name.
    """

    operator_id: int
    num_effects: int
    command: str
    feedback_rule: str
    mapping: Mapping[Placeholder, Variable]
    variables: Mapping[str, Any]


def _pddl2sas(domain: str, problem: str, optimize: bool) -> tuple[Any, str]:
    """Translate PDDL; Fast Downward's translator overwrites ``sys.argv``, swaps ``sys.stdout`` and is not thread-safe."""
    with _translation_lock:
        arguments = sys.argv
        try:
            return fast_downward.pddl2sas(domain, problem, optimize=optimize)
        except SystemExit as error:  # how its parser reports a mistake in the problem
            raise ValueError(f"its PDDL does not translate: {error}") from error
        finally:
            sys.argv = arguments


@lru_cache(maxsize=_TRANSLATED_GAMES)
def _translate(domain: str, problem: str) -> TranslatedGame:
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


@lru_cache(maxsize=_TRANSLATED_GAMES)
def _read_logic(domain: str, grammar: str) -> logic.GameLogic:
    game_logic = logic.GameLogic(domain=domain, grammar=grammar)
    game_logic.grammar = TemplateGrammar(game_logic.grammar)
    return game_logic


class FastState(logic.PddlState):
    """State of a game: facts in Python for the text, the task itself in Fast Downward's library.

    Args:
        downward_lib: This environment's own copy of the library.
        problem: PDDL problem.
        game_logic: Grammar and actions.
        game: The problem, translated.
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
        self._facts: dict[Any, set[Proposition]] = defaultdict(set)
        self._ordered: dict[Any, list[Proposition]] = {}
        self._replan_loaded = False

        known = {kind.name for kind in game_logic.types}
        for kind in game.types:
            if kind.name not in known:
                known.add(kind.name)
                game_logic.types.add(kind)

        downward_lib.load_sas(zlib.decompress(game.sas))
        atoms = (logic.Atom * downward_lib.get_state_size())()
        downward_lib.get_state(atoms)
        self.add_facts(game.facts)
        self.add_facts(
            fact for fact in (atom.get_fact(game.type_of) for atom in atoms) if not fact.is_negation
        )

    def add_fact(self, prop: Proposition) -> None:
        """Make a fact true."""
        self._facts[prop.signature].add(prop)
        self._ordered.clear()

    def remove_fact(self, prop: Proposition) -> None:
        """Make a fact untrue."""
        self._facts[prop.signature].discard(prop)
        self._ordered.clear()

    def assignments(
        self, rule: Rule, mapping: Mapping[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        """All ways to bind the placeholders of a query, in the stock order; different placeholders, different variables."""
        return self._match(rule.preconditions, 0, dict(mapping))

    def _match(
        self, predicates: Any, depth: int, mapping: dict[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        if depth == len(predicates):
            yield mapping
            return
        predicate = predicates[depth]
        bound = [mapping.get(placeholder) for placeholder in predicate.parameters]
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
        """Facts with a signature or one of its subtypes', sorted within each."""
        facts = self._ordered.get(signature)
        if facts is None:
            types = [self._logic.types.get(name) for name in signature.types]
            facts = []
            for subtypes in self._logic.types.multi_subtypes(types):
                group = self._facts.get(
                    logic.textworld.logic.Signature(signature.name, [kind.name for kind in subtypes])
                )
                facts += sorted(group, key=_fact_order) if group else []
            self._ordered[signature] = facts
        return facts

    def replan(self, infos: Mapping[str, Any]) -> list[str]:
        """Commands that the planner would give from here; empty where there is no way to the goal. Takes a while."""
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
    """``mapping`` with the placeholders bound to the variables, or ``None`` where that contradicts it."""
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


class FastPddlEnv(PddlEnv):
    """Drop-in for TextWorld's ``PddlEnv`` under ALFWorld's own wrappers."""

    downward_lib: Any
    state: Any
    prev_state: Any
    _last_action: Any
    _game_data: Any

    def __init__(self, infos: textworld.EnvInfos | None = None) -> None:
        textworld.Environment.__init__(self, infos)
        self.downward_lib = _idle_libraries.pop() if _idle_libraries else fast_downward.load_lib()

    def load(self, filename_or_data: str | Mapping[str, Any]) -> None:
        """Load a game file, or its content."""
        self._game_file = filename_or_data if isinstance(filename_or_data, str) else None
        self._game_data = filename_or_data
        if isinstance(filename_or_data, str):
            with open(filename_or_data, encoding="utf-8") as file:
                self._game_data = json.load(file)
        self.walkthrough = self._game_data.get("walkthrough")
        self._logic = _read_logic(self._game_data["pddl_domain"], self._game_data["grammar"])
        self._new_state()
        self._entity_infos = self._get_entity_infos()
        fluents = self._pddl_state.game.fluents
        actions = self._logic.actions.items()
        self._steady = {
            n for n, action in actions if not self._logic.grammar.predicates(action.template) & fluents
        }

    def _new_state(self) -> None:
        problem = self._game_data["pddl_problem"]
        self._pddl_state = FastState(
            self.downward_lib, problem, self._logic, _translate(self._logic.domain, problem)
        )
        self._operations: dict[int, Operation] = {}
        self._names: dict[int, str] = {}

    def reset(self) -> GameState:
        """Start the loaded game."""
        self._new_state()
        self.prev_state = None
        self._moves = 0
        self._last_action = None
        self.state = GameState(feedback=self._expand("#intro#", {}, {}))
        self._gather_infos()
        if "walkthrough" in self.request_infos.extras:
            self.state["extra.walkthrough"] = self.walkthrough or self._pddl_state.replan(self._entity_infos)
        return self.state

    def step(self, command: str) -> tuple[GameState, int, bool]:
        """Give a command; one that does not apply changes nothing."""
        command = command.strip()
        self.prev_state = self.state
        self._last_action = self._applicable.get(command)
        feedback = "Nothing happens."
        if self._last_action is not None:
            operation = self._last_action
            self._apply(operation)
            feedback = self._expand(operation.feedback_rule, operation.mapping, operation.variables)
            self._moves += 1
        self.state = GameState(feedback=feedback, last_command=command)
        self._gather_infos()
        if "walkthrough" in self.request_infos.extras:
            self.state["extra.walkthrough"] = self.prev_state["extra.walkthrough"]
        self.state["score"] = 1 if self.state["won"] else 0
        self.state["done"] = self.state["won"]
        return self.state, self.state["score"], self.state["done"]

    def _apply(self, operation: Operation) -> None:
        effects = (logic.Atom * operation.num_effects)()
        self.downward_lib.apply_operator(operation.operator_id, effects)
        for effect in effects:
            fact = effect.get_fact(self._pddl_state.name2type)
            self._pddl_state.remove_fact(fact.negate())
            self._pddl_state.add_fact(fact)

    def _gather_infos(self) -> None:
        self.state.update(raw=self.state["feedback"], won=self._pddl_state.check_goal(), lost=False)
        self._applicable = self._applicable_operations()
        self.state["admissible_commands"] = sorted(self._applicable)
        if self.request_infos.facts:
            self.state["facts"] = [self._get_human_readable_fact(fact) for fact in self._pddl_state.facts]
        if self.request_infos.moves:
            self.state["moves"] = self._moves
        if self.request_infos.policy_commands:
            self.state["policy_commands"] = self._pddl_state.replan(self._entity_infos)

    def _applicable_operations(self) -> dict[str, Operation]:
        """Operations that apply now, by command; of several with one command the first, as in the stock engine."""
        operators = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(operators)
        applicable: dict[str, Operation] = {}
        for operator in operators:
            operation = self._operations.get(operator.id)
            if operation is None:
                operation, steady = self._ground(operator)
                if steady:
                    self._operations[operator.id] = operation
            applicable.setdefault(operation.command, operation)
        return applicable

    def _ground(self, operator: Any) -> tuple[Operation, bool]:
        """The operation of a Fast Downward operator, and whether it will read the same whatever happens."""
        name, *arguments = operator.name.split()
        parameters = self._pddl_state.game.actions[name].parameters
        mapping = {
            Placeholder(parameter.name.strip("?"), parameter.type_name): Variable(
                argument, parameter.type_name
            )
            for parameter, argument in zip(parameters, arguments, strict=False)
        }
        variables = {
            placeholder.name: self._entity_infos[variable.name] for placeholder, variable in mapping.items()
        }
        action = self._logic.actions[name]
        command = self._expand(action.template, mapping, variables)
        if "{" in command:  # a template may leave ids for the formatter, as the stock engine allows
            command = command.format(**{key: info.name for key, info in self._entity_infos.items()})
        operation = Operation(
            operator.id, operator.nb_effect_atoms, command, action.feedback_rule, mapping, variables
        )
        return operation, name in self._steady

    def _expand(
        self, template: str, mapping: Mapping[Placeholder, Variable], variables: Mapping[str, Any]
    ) -> str:
        return self._logic.grammar.expand(
            template, Context(self._pddl_state, mapping, variables, self._entity_infos)
        )

    def plan(self) -> list[str]:
        """Commands that the planner would give from here, empty where there is no way to the goal."""
        return self._pddl_state.replan(self._entity_infos)

    def close(self) -> None:
        """Hand this environment's copy of the library back for the next one; may be called twice."""
        library, self.downward_lib = getattr(self, "downward_lib", None), None
        if library is not None:
            library.cleanup()
            _idle_libraries.append(library)


def make_engine(fast: bool = True, plan: bool = False) -> textworld.core.Wrapper:
    """ALFWorld's engine for one game at a time.

    Args:
        fast: The fast path; else TextWorld's own engine.
        plan: Have every state carry ``policy_commands`` (slow).
    """
    infos = textworld.EnvInfos(won=True, admissible_commands=True, policy_commands=plan)
    return AlfredDemangler((FastPddlEnv if fast else PddlEnv)(infos))
