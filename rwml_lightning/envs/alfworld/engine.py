"""Fast version of ALFWorld's engine, with the same text, admissible commands, won, score and done as TextWorld's ``PddlEnv``.

The stock engine repeats work that this engine does once:

- The grammar is parsed once for each game, and each template once in a process (``textgen``).
- PDDL is translated once for each game. The translations of the most recent games are kept, compressed.
- The second translation, which only the planner needs, is made at the first request for a plan.
- The command of an operator is derived once if no fact that an action changes can alter it.

Rules, states and goals are still TextWorld's and Fast Downward's own. Nothing is patched: all classes are subclasses. Import this
module through ``extra.import_engine``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.core import GameState
from textworld.envs import PddlEnv
from textworld.envs.pddl import logic
from textworld.logic import Placeholder, Variable

from rwml_lightning.envs.alfworld.state import FastState, translate
from rwml_lightning.envs.alfworld.textgen import Context, TemplateGrammar

_MAX_GRAMMARS = 256
# Each environment has its own copy of the library. A copy is never unloaded: the copies share a C++ registry with functions of
# all copies, so the process would crash at exit.
_idle_libraries: list[Any] = []


class Operation(NamedTuple):
    """Grounded action that can be applied in the current state.

    Args:
        operator_id: Fast Downward's number of the operator.
        num_effects: Maximum number of atoms that it changes.
        command: Command of the player.
        feedback_rule: Template of the answer.
        mapping: Variable of each placeholder of the action.
        variables: Entity of each placeholder name.
    """

    operator_id: int
    num_effects: int
    command: str
    feedback_rule: str
    mapping: Mapping[Placeholder, Variable]
    variables: Mapping[str, Any]


@lru_cache(maxsize=_MAX_GRAMMARS)
def _read_logic(domain: str, grammar: str) -> logic.GameLogic:
    game_logic = logic.GameLogic(domain=domain, grammar=grammar)
    game_logic.grammar = TemplateGrammar(game_logic.grammar)
    return game_logic


class FastPddlEnv(PddlEnv):
    """Replacement of TextWorld's ``PddlEnv`` inside ALFWorld's own wrappers, with the infos that :func:`make_engine` requests."""

    downward_lib: Any
    state: Any
    _game_data: Any

    def __init__(self, infos: textworld.EnvInfos | None = None) -> None:
        textworld.Environment.__init__(self, infos)
        self.downward_lib = _idle_libraries.pop() if _idle_libraries else fast_downward.load_lib()

    def load(self, filename_or_data: str | Mapping[str, Any]) -> None:
        """Load a game file or the content of a game file."""
        self._game_file = filename_or_data if isinstance(filename_or_data, str) else None
        self._game_data = filename_or_data
        if isinstance(filename_or_data, str):
            with open(filename_or_data, encoding="utf-8") as file:
                self._game_data = json.load(file)
        self._logic = _read_logic(self._game_data["pddl_domain"], self._game_data["grammar"])
        problem = self._game_data["pddl_problem"]
        game = translate(self._logic.domain, problem)
        self._pddl_state = FastState(self.downward_lib, problem, self._logic, game)
        self._entity_infos = self._get_entity_infos()
        self._operations: dict[int, Operation] = {}
        actions = self._logic.actions.items()
        self._actions_with_fixed_text = {
            n for n, action in actions if not self._logic.grammar.predicates(action.template) & game.fluents
        }

    def reset(self) -> GameState:
        """Start the loaded game."""
        self._pddl_state.restart()
        self.state = GameState(feedback=self._expand("#intro#", {}, {}))
        self._gather_infos()
        return self.state

    def step(self, command: str) -> tuple[GameState, int, bool]:
        """Execute a command. A command that is not applicable changes nothing."""
        command = command.strip()
        operation = self._applicable.get(command)
        feedback = "Nothing happens."
        if operation is not None:
            self._apply(operation)
            feedback = self._expand(operation.feedback_rule, operation.mapping, operation.variables)
        self.state = GameState(feedback=feedback, last_command=command)
        self._gather_infos()
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
        self._applicable = self._list_applicable()
        self.state["admissible_commands"] = sorted(self._applicable)
        if self.request_infos.policy_commands:
            self.state["policy_commands"] = self._pddl_state.replan(self._entity_infos)

    def _list_applicable(self) -> dict[str, Operation]:
        """Return the applicable operations by command. If several share a command, the first is used, as in the stock engine."""
        operators = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(operators)
        applicable: dict[str, Operation] = {}
        for operator in operators:
            operation = self._operations.get(operator.id)
            if operation is None:
                operation, has_fixed_text = self._ground(operator)
                if has_fixed_text:
                    self._operations[operator.id] = operation
            applicable.setdefault(operation.command, operation)
        return applicable

    def _ground(self, operator: Any) -> tuple[Operation, bool]:
        """Return the operation of a Fast Downward operator, and whether its command is the same in every state."""
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
        if "{" in command:  # a template may contain ids in braces, as in the stock engine
            command = command.format(**{key: info.name for key, info in self._entity_infos.items()})
        operation = Operation(
            operator.id, operator.nb_effect_atoms, command, action.feedback_rule, mapping, variables
        )
        return operation, name in self._actions_with_fixed_text

    def _expand(
        self, template: str, mapping: Mapping[Placeholder, Variable], variables: Mapping[str, Any]
    ) -> str:
        return self._logic.grammar.expand(
            template, Context(self._pddl_state, mapping, variables, self._entity_infos)
        )

    def plan(self) -> list[str]:
        """Return the planner's commands from the current state to the goal. The list is empty if there is no plan."""
        return self._pddl_state.replan(self._entity_infos)

    def close(self) -> None:
        """Release this environment's copy of the library for reuse. It may be called twice."""
        library, self.downward_lib = getattr(self, "downward_lib", None), None
        if library is not None:
            library.cleanup()
            _idle_libraries.append(library)


def make_engine(fast: bool = True, plan: bool = False) -> textworld.core.Wrapper:
    """Make ALFWorld's engine, which plays one game at a time.

    Args:
        fast: Whether to use the fast engine; otherwise TextWorld's own engine is used.
        plan: Whether every state contains ``policy_commands``, the planner's commands (slow).
    """
    infos = textworld.EnvInfos(won=True, admissible_commands=True, policy_commands=plan)
    return AlfredDemangler((FastPddlEnv if fast else PddlEnv)(infos))
