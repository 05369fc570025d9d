"""The fast path against the stock engine: the same text, admissible commands, won, score and done."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("alfworld")

from rwml_lightning.envs.alfworld import scan_games
from rwml_lightning.envs.alfworld.extra import import_engine

NUM_STEPS = 12
REFUSED = r"the game's grammar contains the expression .{,40}; only names, attributes of entities, texts, '\+' and 'or' are"


def _engine(fast: bool) -> Any:
    return import_engine("rwml_lightning.envs.alfworld.engine").make_engine(fast=fast)


def _play(path: Path, fast: bool, actions: list[str] | None) -> list[tuple[Any, ...]]:
    """What a game says: to the given actions, or to random admissible ones with invalid ones between."""
    engine, rng = _engine(fast), Random(path.parent.name)
    engine.load(str(path))
    state = engine.reset()
    record = [(state["feedback"], state["admissible_commands"], state["won"])]
    for number in range(NUM_STEPS if actions is None else len(actions)):
        drawn = rng.choice(state["admissible_commands"])
        if actions is not None:
            drawn = actions[number]
        elif number % 5 == 4:
            drawn = rng.choice(["open the pod bay doors", drawn.upper(), "", f" {drawn} "])
        state, score, done = engine.step(drawn)
        record.append(
            (
                drawn,
                state["feedback"],
                state["admissible_commands"],
                state["won"],
                state["score"],
                score,
                done,
            )
        )
    engine.close()
    return record


def _assert_equal_play(path: Path, actions: list[str] | None = None) -> list[tuple[Any, ...]]:
    fast, stock = _play(path, True, actions), _play(path, False, actions)
    for mine, theirs in zip(fast, stock, strict=True):
        assert mine == theirs
    return fast


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_generated_games_play_as_on_the_stock_engine(games: Path, number: int) -> None:
    game = scan_games(games).games[number]
    path = games / game.task_id / "game.tw-pddl"
    _assert_equal_play(path)
    record = _assert_equal_play(path, json.loads(path.read_text())["walkthrough"])
    assert record[-1][-1] is True


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_real_games_play_as_on_the_stock_engine(real_games: Path, number: int) -> None:
    _assert_equal_play(real_games / scan_games(real_games).games[number].task_id / "game.tw-pddl")


@pytest.mark.heavy
def test_planner_and_reset_agree_with_the_stock_engine(games: Path) -> None:
    path = str(games / scan_games(games).tasks["train"][0] / "game.tw-pddl")
    make_engine = import_engine("rwml_lightning.envs.alfworld.engine").make_engine
    states = []
    for fast in (True, False):
        engine = make_engine(fast=fast, plan=True)
        engine.load(path)
        states.append(engine.reset())
    assert states[0]["policy_commands"] == states[1]["policy_commands"] != []

    engine = make_engine()
    engine.load(path)
    first = engine.reset()
    for action in states[0]["policy_commands"]:
        engine.step(action)
    again = engine.reset()
    assert (again["feedback"], again["admissible_commands"], again["won"]) == (
        first["feedback"],
        first["admissible_commands"],
        False,
    )


def test_translation_leaves_the_programs_arguments_alone(
    games: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    content = json.loads((games / scan_games(games).tasks["train"][0] / "game.tw-pddl").read_text())
    content["pddl_problem"] += "\n; a text that is not translated yet"
    _engine(fast=True).load(content)
    assert sys.argv == ["program", "--flag"]


def test_a_game_file_cannot_run_code(games: Path, tmp_path: Path) -> None:
    content = json.loads((games / scan_games(games).tasks["train"][0] / "game.tw-pddl").read_text())
    target = tmp_path / "written"
    idle = "You are not carrying anything."
    assert idle in content["grammar"]
    content["grammar"] = content["grammar"].replace(idle, f"{{open('{target}', 'w').name}}")
    engine = _engine(fast=True)
    engine.load(content)
    engine.reset()
    with pytest.raises(ValueError, match=REFUSED):
        engine.step("inventory")
    assert not target.exists()


def _text_of(expression: str) -> str:
    """What the engine makes of an expression about an apple that has no description."""
    textgen = import_engine("rwml_lightning.envs.alfworld.textgen")
    apple = import_engine("textworld.generator.game").EntityInfo("apple_1", "object")
    apple.name, apple.indefinite, apple.adj = "apple 1", "an", ""
    symbol = import_engine("textworld.envs.pddl.textgen").EvalSymbol(expression)
    rules = import_engine("textworld.envs.pddl.textgen").ContextSensitiveGrammar()
    [text] = textgen.TemplateGrammar(rules)._expander(symbol)(textgen.Context(None, {}, {"o": apple}, {}))
    return text


@pytest.mark.parametrize(
    ("expression", "text"),
    [("o", "apple 1"), ("o.name ", "apple 1"), ("o.indefinite + ' ' + o.name ", "an apple 1"), ("o.name or o.id", "apple 1"),
     ("o.desc or o.adj or o.id", "apple_1"), ("x", None), ("o.desc + 'x'", None)],
)  # fmt: skip
def test_expressions_of_games(expression: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(ValueError, match=r"the expression .* in the game's grammar has no value: "):
            _text_of(expression)
    else:
        assert _text_of(expression) == text


@pytest.mark.parametrize(
    "expression",
    ["o.__class__", "o.serialize", "o.name.format", "o.name()", "f'{o.name}'", "1 + 2", "'a' * 9", "o and o", "o == o",
     "[o]", "o if o else o", "lambda: o", "(o := 1)", "import os", "o" + ".a" * 30_000, "'a'" + " + 'a'" * 30_000],
)  # fmt: skip
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        _text_of(expression)


def test_closed_engines_hand_their_library_on(games: Path) -> None:
    module = import_engine("rwml_lightning.envs.alfworld.engine")
    first = module.make_engine()
    library = first.downward_lib
    first.close()
    first.close()
    second = module.make_engine()
    assert second.downward_lib is library
    second.load(str(games / scan_games(games).tasks["train"][0] / "game.tw-pddl"))
    assert "Your task is to" in second.reset()["feedback"]
