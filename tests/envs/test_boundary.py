"""What environments may answer, and what is said of other answers."""

from __future__ import annotations

import logging
import math
from enum import Enum
from typing import Any

import numpy as np
import pytest

from rwml_lightning.envs import (
    EnvironmentPool,
    EnvironmentSpec,
    Failure,
    Observation,
    read_tasks,
)
from rwml_lightning.envs.boundary import read_reset, read_step, read_walkthrough


class Word(str, Enum):  # noqa: UP042 - a StrEnum prints as its text
    """A text that prints as something else."""

    NORTH = "go north"


MESSAGE = {"role": "user", "content": "hi"}
REFUSED_OBSERVATIONS = [
    (b"hi", "observation is bytes, not text or a list of chat messages"),
    ({"text": "hi"}, "observation is dict, not text"),
    (0, r"observation is 0 \(int\), not text"),
    (7, r"observation is 7 \(int\), not text"),
    (None, "observation is None, not text"),
    (np.zeros(2), "observation is ndarray, not text"),
    (["hi"], r"observation\[0\] is 'hi' \(str\), not a chat message with 'role' and 'content'"),
    ([MESSAGE, {"role": "tool"}], r"observation\[1\]\['content'\] is None, not text"),
    (
        [{"role": "assistant", "content": None, "tool_calls": []}],
        r"observation\[0\]\['content'\] is None, not text",
    ),
    ([{"role": None, "content": "hi"}], r"observation\[0\]\['role'\] is None, not text"),
    ([{"role": "user", "content": [{"text": "hi"}]}], r"observation\[0\]\['content'\] is list, not text"),
]
REFUSED_INFO = [
    (None, "info is None, not a mapping"),
    ([], "info is list, not a mapping"),
    ({"task": 3}, r"info\['task'\] is 3 \(int\), not text"),
    ({"next_state": b"x"}, r"info\['next_state'\] is bytes, not text"),
    ({"valid": "no"}, r"info\['valid'\] is 'no' \(str\), not True or False"),
    ({"won": 1}, r"info\['won'\] is 1 \(int\), not True or False"),
    ({"admissible_actions": "look"}, r"info\['admissible_actions'\] is 'look' \(str\), not a list of texts"),
    ({"admissible_actions": ["look", 1]}, r"info\['admissible_actions'\]\[1\] is 1 \(int\), not text"),
    ({"measures": {"hops": "two"}}, r"info\['measures'\]\['hops'\] is 'two' \(str\), not a finite number"),
    ({"measures": {"hops": math.nan}}, r"info\['measures'\]\['hops'\] is nan \(float\), not a finite number"),
    ({"tools": [{"default": b"x"}]}, r"info\['tools'\] is list, not a list of JSON schemas"),
    ({"tools": ["look"]}, r"info\['tools'\] is list, not a list of JSON schemas"),
]
REFUSED_STEPS = [
    (
        ("o", 0.0, True, {}),
        r"the answer has 4 values, not 5: \(observation, reward, terminated, truncated, info\)",
    ),
    ("o", r"the answer is 'o' \(str\), not \(observation, reward"),
    (("o", math.nan, False, False, {}), r"reward is nan \(float\), not a finite number"),
    (("o", np.float32("inf"), False, False, {}), r"reward is inf \(float32\), not a finite number"),
    (("o", 10**400, False, False, {}), r"reward is inf \(float\), not a finite number"),
    (("o", "1", False, False, {}), r"reward is '1' \(str\), not a finite number"),
    (("o", None, False, False, {}), "reward is None, not a finite number"),
    (("o", 1.0, "False", False, {}), r"terminated is 'False' \(str\), not True or False"),
    (("o", 1.0, False, None, {}), "truncated is None, not True or False"),
]


@pytest.mark.parametrize(("obs", "message"), REFUSED_OBSERVATIONS)
def test_an_observation_is_text_or_chat_messages(obs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_reset((obs, {}))
    with pytest.raises(ValueError, match=message):
        read_step((obs, 0.0, False, False, {}))


@pytest.mark.parametrize(("info", "message"), REFUSED_INFO)
def test_info_is_a_mapping_whose_known_keys_have_their_types(info: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_reset(("o", info))
    with pytest.raises(ValueError, match=message):
        read_step(("o", 0.0, False, False, info))


@pytest.mark.parametrize(("answer", "message"), REFUSED_STEPS)
def test_a_step_has_five_values_of_their_types(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_step(answer)


def test_reset_has_two_values() -> None:
    with pytest.raises(ValueError, match=r"the answer is 'o' \(str\), not \(observation, info\)"):
        read_reset("o")
    with pytest.raises(ValueError, match=r"the answer has 1 values, not 2: \(observation, info\)"):
        read_reset(("o",))


def test_what_is_near_enough_becomes_plain() -> None:
    messages = [{"role": np.str_("tool"), "content": Word.NORTH, "tool_call_id": 3}]
    info = {
        "admissible_actions": np.array(["a", "b"]),
        "kind": Word.NORTH,
        "valid": np.bool_(False),
        "measures": {"hops": np.int64(3)},
        "tools": ({"name": "f"},),
        "won": None,
        "task": None,
        "own": b"x",
    }
    read = read_step((messages, np.float32(0.5), np.bool_(True), False, info))
    plain = {
        "admissible_actions": ("a", "b"),
        "kind": "go north",
        "valid": False,
        "measures": {"hops": 3.0},
        "tools": ({"name": "f"},),
        "own": b"x",
    }
    assert read == Observation(({"role": "tool", "content": "go north"},), 0.5, True, False, plain)
    texts = [read.messages[0]["content"], read.info["kind"], *read.info["admissible_actions"]]
    assert {type(text) for text in texts} == {str}
    numbers = (read.reward, read.terminated, read.info["valid"])
    assert [type(value) for value in numbers] == [float, bool, bool]
    assert read_reset((np.str_("hi"), {})) == Observation("hi")
    assert read_reset(([], {})).text == ""


def test_a_lone_surrogate_is_replaced_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read = read_reset(("a\ud800b", {"background": "\udc00", "tools": [{"description": "\ud800"}]}))
    assert (read.obs, read.info["background"]) == ("a\ufffdb", "\ufffd")
    assert read.info["tools"] == ({"description": "\ufffd"},)
    assert caplog.text.count("info['background'] contains a lone surrogate") <= 1
    assert read_walkthrough(["\udfff go"]) == ("\ufffd go",)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            {"train": ["a", 3]},
            r"tasks\['train'\]\[1\] is 3 \(int\), not a non-empty text without lone surrogates",
        ),
        (
            {"train": [""]},
            r"tasks\['train'\]\[0\] is '' \(str\), not a non-empty text without lone surrogates",
        ),
        ({"train": ["\ud800"]}, r"tasks\['train'\]\[0\] is '\\ud800' \(str\), not a non-empty text"),
        ({"train": "abc"}, r"tasks\['train'\] is 'abc' \(str\), not a list of texts"),
        (3, r"tasks\['train'\] is 3 \(int\), not a list of texts"),
    ],
)
def test_tasks_are_texts_by_split(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tasks(tasks)


def test_tasks_without_splits_are_for_training() -> None:
    assert read_tasks(np.array(["a", "b"])) == {"train": ["a", "b"]}
    assert read_tasks({"valid": ("v",)}) == {"valid": ["v"]}


@pytest.mark.parametrize(
    ("kwargs", "where", "message"),
    [
        ({"first": (5, {})}, "reset", "observation is 5 (int), not text or a list of chat messages"),
        (
            {"later": ("o", math.nan, False, False, {})},
            "step 1",
            "reward is nan (float), not a finite number",
        ),
        (
            {"later": [("o", 0.0, False, False, {}), ("o", 0.0, False, False, None)]},
            "step 2",
            "info is None, not a mapping",
        ),
        ({"plan": ["look", b"go"]}, "walkthrough", "walkthrough()[1] is bytes, not text"),
    ],
)
def test_the_failure_names_environment_episode_and_place(
    kwargs: dict[str, Any], where: str, message: str
) -> None:
    spec = EnvironmentSpec("support.environments:AnsweringEnv", kwargs)
    with EnvironmentPool(spec, num_workers=1) as pool:
        answers: list[Any] = [pool.reset_many([(0, 9, "t1")])[0]]
        answers += [pool.walkthrough_many([0])[0]] if where == "walkthrough" else []
        answers += [pool.step_many({0: "look"})[0] for _ in range(2) if not isinstance(answers[-1], Failure)]
        failure = next(answer for answer in answers if isinstance(answer, Failure))
        assert failure.reason == "raised"
        assert failure.line == (
            f"slot 0: ValueError: environment 'support.environments:AnsweringEnv' (task 't1', seed 9), {where}: {message}"
        )
