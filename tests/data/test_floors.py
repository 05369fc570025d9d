"""Floors that any environment has."""

from __future__ import annotations

from rwml_lightning.data.floors import floors_for
from rwml_lightning.envs.alfworld import FLOORS
from support.worlds import make_transition


def test_the_most_common_answer_to_the_same_tool_or_word() -> None:
    known = [
        make_transition(0, environment="shop", action="get_user(user_id='a')", next_state="a user"),
        make_transition(1, environment="shop", action="get_user(user_id='b')", next_state="a user"),
        make_transition(2, environment="shop", action="get_user(user_id='c')", next_state="Error"),
        make_transition(3, environment="shop", action="cancel()", next_state="gone"),
        make_transition(
            4,
            environment="shop",
            action='<tool_call>\n{"name": "refund", "arguments": {}}\n</tool_call>',
            next_state="paid",
        ),
    ]
    floors = floors_for(known, known)
    asked = {
        "get_user(user_id='d')": "a user",
        "cancel()": "gone",
        '<tool_call>{"name": "refund", "arguments": {"id": 1}}</tool_call>': "paid",
        "???": "a user",  # what is most common of all
    }
    for action, answer in asked.items():
        assert floors["most_common"](make_transition(9, action=action, observation="before")) == answer
    assert floors["copy_observation"](make_transition(9, observation="before")) == "before"


def test_without_training_transitions_there_is_no_most_common_answer() -> None:
    assert list(floors_for([make_transition(0, environment="shop")], [])) == ["copy_observation"]


def test_alfworld_has_its_own() -> None:
    assert floors_for([make_transition(0, environment="rwml/ALFWorld-v0")], []) is FLOORS
