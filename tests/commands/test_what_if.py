"""Any action in any state: what the model predicts beside what the environment answers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwml_lightning.cli import main
from rwml_lightning.commands.model_evaluator import load_module
from rwml_lightning.commands.what_if import WhatIf, newest_weights, respond, serve
from rwml_lightning.data.collection import Collection
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.selection import Validation
from rwml_lightning.data.transitions import read_transitions, write_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.generation import HFGenerator
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.run import Run, open_run_folder
from rwml_lightning.schema import Sampling
from support.rewards import LetterReward
from support.runs import make_config
from support.worlds import ACTION_PROMPT

GAMES = {"train": ["a", "broken-b", "cut"], "validation": ["v"]}


def make_data(folder: Path, model: Path, environment: EnvironmentSpec | None = None) -> RolloutDataModule:
    arguments = {"games": GAMES, "folder": str(folder), "length": 4}
    return RolloutDataModule(
        HFGenerator(str(model)),
        environment or EnvironmentSpec("support.environments.RoomsEnv", arguments),
        Predictions(
            str(folder / "t.parquet"),
            LetterReward(),
            Collection(
                "random",
                max_turns=5,
                num_environments=4,
                num_workers=1,
                max_dropped_share=1.0,
                history_turns=1,
            ),
            prompt=ACTION_PROMPT,
            sampling=Sampling(max_tokens=12),
            validation=Validation(temperature=1.0),
        ),
        seed=5,
    )


def no_policy() -> PolicyClient:
    raise AssertionError("a random player needs no model")


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> Iterator[WhatIf]:
    data = make_data(tmp_path, tiny_model)
    data.need_predictions().collect(data.environment, data.seed, no_policy)
    data.seed = 6  # what is recorded is found again by the seed that recorded it
    world = WhatIf(data, load_module(str(tiny_model), "float32"), group_size=3)
    yield world
    world.close()


@pytest.mark.heavy
def test_recorded_states_are_found_and_their_actions_have_the_recorded_outcome(world: WhatIf) -> None:
    recorded = [t for t in read_transitions(world.predictions.path) if t.game != "broken-b"]
    assert len(recorded) > 5
    for transition in recorded:
        scene = respond(world, {"find": transition.transition_id})
        assert scene["observation"] == transition.observation
        assert len(scene["turns"]) == int(transition.transition_id.rpartition("/")[2])
        asked = respond(world, {"place": scene["place"], "action": transition.action})
        for field in ("observation", "action", "next_state", "kind", "valid", "task", "game"):
            assert asked["transition"][field] == getattr(transition, field)
        assert len(asked["predictions"]) == 3
        assert asked["observation"] == transition.observation


def test_predictions_are_scored_and_drawn_anew_when_asked_again(world: WhatIf) -> None:
    place = respond(world, {"begin": 0})["place"]
    assert place["game"] == "v"
    first, second = (respond(world, {"place": place, "action": "take apple"}) for _ in range(2))
    texts = [[one["text"] for one in answer["predictions"]] for answer in (first, second)]
    assert texts[0] != texts[1]
    assert first["transition"] == second["transition"]
    assert first["transition"]["next_state"] == "Nothing happens."
    for one in first["predictions"]:
        scored = world.predictions.need_evaluator().score([load(first)], [one["next_state"]])[0]
        assert scored is not None
        assert (one["reward"], one["similarity"]) == (scored.reward, scored.similarity)


def load(answer: dict[str, Any]) -> Any:
    from rwml_lightning.schema import Transition

    return Transition(**{**answer["transition"], "history": ()})


def test_predictions_are_sampled_as_held_out_ones(world: WhatIf, monkeypatch: pytest.MonkeyPatch) -> None:
    world.predictions = replace(world.predictions, validation=Validation(temperature=0.5, top_p=0.8))
    asked: list[Sampling] = []
    generate = world.rollouts.policy.generator.generate

    def watched(prompts: Any, sampling: Sampling, seeds: Any) -> Any:
        asked.append(sampling)
        return generate(prompts, sampling, seeds)

    monkeypatch.setattr(world.rollouts.policy.generator, "generate", watched)
    first = read_transitions(world.predictions.path)[0]
    scene = respond(world, {"find": first.transition_id})
    respond(world, {"place": scene["place"], "action": first.action})
    assert asked == [Sampling(12, temperature=0.5, top_p=0.8)]


def test_one_goes_on_to_the_end_and_not_beyond(world: WhatIf) -> None:
    place = respond(world, {"begin": 1})["place"]
    for turn in range(3):
        scene = respond(world, {"place": place})
        assert (len(scene["turns"]), scene["over"]) == (turn, False)
        assert "go on" in scene["admissible"]
        place = {**place, "actions": [*place["actions"], "go on"]}
    assert respond(world, {"place": place})["over"]
    assert "the episode is over here" in respond(world, {"place": place, "action": "wait"})["error"]
    beyond = {**place, "actions": [*place["actions"], "wait"]}
    assert respond(world, {"place": beyond})["error"] == "the episode is over after 3 turns"


@pytest.mark.heavy
def test_what_cannot_be_reached_is_said_in_one_line(world: WhatIf) -> None:
    recorded = read_transitions(world.predictions.path)
    assert "holds no transition 'nowhere'" in respond(world, {"find": "nowhere"})["error"]
    broken = {"game": "broken-b", "seed": 0, "actions": ["go on"]}
    error = respond(world, {"place": broken, "action": "go on"})["error"]
    assert "broken-b is broken" in error
    assert "\n" not in error
    assert respond(world, {"place": broken})["observation"].startswith(
        "Room 1"
    )  # another environment took over
    late = next(t for t in recorded if t.transition_id.endswith("/2"))
    write_transitions(world.predictions.path, [late])
    del world._recorded
    assert "does not hold all actions that led to" in respond(world, {"find": late.transition_id})["error"]


def test_a_state_that_the_environment_no_longer_comes_to(world: WhatIf) -> None:
    first = next(t for t in read_transitions(world.predictions.path) if t.transition_id.endswith("/0"))
    world._collection_seed = 77  # another colour
    assert "no longer reaches the state of" in respond(world, {"find": first.transition_id})["error"]


def test_lines_in_lines_out(tmp_path: Path, tiny_model: Path) -> None:
    answers = io.StringIO()
    requests = [json.dumps({"begin": 0, "id": 7}), json.dumps({"find": "x", "id": 8})]
    serve(make_data(tmp_path, tiny_model), str(tiny_model), "float32", 2, requests, answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [set(line) & {"status", "ready", "id", "error"} for line in lines] == [
        {"status"}, {"status"}, {"ready"}, {"id"}, {"id", "error"},
    ]  # fmt: skip
    assert lines[3]["observation"].startswith("Room 0 of v")
    assert "does not exist here; start in the folder" in lines[4]["error"]


def test_a_config_without_an_environment_cannot_be_asked(tmp_path: Path, tiny_model: Path) -> None:
    data = make_data(tmp_path, tiny_model)
    data.environment = None
    with pytest.raises(ValueError, match=r"data\.environment is not set"):
        WhatIf(data, load_module(str(tiny_model), "float32"), 1)


def test_the_newest_weights_of_a_run(tmp_path: Path) -> None:
    folder = open_run_folder(Run("r", str(tmp_path)), "")
    assert newest_weights("base", None) == "base"
    assert newest_weights("base", "other") == "other"
    assert newest_weights("base", str(folder.path)) == "base"
    folder.warm_up.mkdir()
    assert newest_weights("base", str(folder.path)) == str(folder.warm_up)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-3.ckpt").touch()
    assert newest_weights("base", str(folder.path)) == str(folder.checkpoints / "step-3.ckpt")
    folder.export.mkdir()
    assert newest_weights("base", str(folder.path)) == str(folder.export)


def test_a_state_that_the_environment_cut_off_is_over(world: WhatIf) -> None:
    place = {"game": "cut", "seed": 1, "actions": ["go on"]}
    asked = respond(world, {"place": place, "action": "go on"})
    assert not asked["over"]  # the state before the action
    last = {**place, "actions": ["go on", "go on"]}
    assert respond(world, {"place": last})["over"]
    assert "the episode is over here" in respond(world, {"place": last, "action": "wait"})["error"]
    beyond = {**place, "actions": ["go on"] * 3}
    assert respond(world, {"place": beyond}) == {"error": "the episode is over after 2 turns"}


def test_a_lone_surrogate_of_a_question_is_replaced(world: WhatIf) -> None:
    place = {"game": "a", "seed": 1, "actions": []}
    asked = respond(world, {"place": place, "action": "fly \ud800"})
    assert asked["transition"]["action"] == "fly \ufffd"
    assert asked["predictions"]


def test_an_environment_that_is_none_is_never_called(tmp_path: Path, tiny_model: Path) -> None:
    mark = tmp_path / "called"
    spec = EnvironmentSpec("os.system", {"command": f"touch {mark}"})
    world = WhatIf(make_data(tmp_path, tiny_model, spec), load_module(str(tiny_model), "float32"), 1)
    try:
        for question in ({"begin": 0}, {"place": {"game": "", "seed": 0, "actions": []}}):
            assert (
                "os.system' is neither a gymnasium.Env class nor a function"
                in respond(world, question)["error"]
            )
    finally:
        world.close()
    assert not mark.exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "key",
    [
        "data.predictions.reward",
        "data.predictions.evaluator",
        "data.generator",
        "model",
        "trainer.callbacks",
        "trainer.logger",
    ],
)
def test_a_class_of_another_sort_is_never_called(
    tmp_path: Path, tiny_model: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "called"
    hostile: Any = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(mark)]}}
    section, _, name = key.replace("data.predictions", "predictions").partition(".")
    hostile = [hostile] if name == "callbacks" else hostile
    config = make_config(tmp_path, tiny_model, **{section: {name: hostile} if name else hostile})
    with pytest.raises(SystemExit) as stopped:
        main(["what_if", "--config", str(config)])
    assert stopped.value.code == 2
    assert key in capsys.readouterr().err
    assert not mark.exists()
