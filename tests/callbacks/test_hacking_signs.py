"""Signs of reward hacking by hand, and when they are said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from rwml_callbacks import RewardHackingWatch, RewardLogger, WeightSync
from rwml_callbacks.hacking_signs import hacking_metrics, is_content_free, is_copy, word_overlap

from rwml_lightning.schema import Turn
from support.callback_runs import fit
from support.hacking import GOOD, make_group
from support.runs import rows_of
from support.worlds import make_transition

HERE = "You are in the middle of a room. You see a desk 1 and a shelf 2."


@pytest.mark.parametrize(
    ("prediction", "copied"),
    [
        (HERE, True),
        ("you are in the middle  of a room. you see a desk 1 and a shelf 3.", True),
        ("The drawer 1 is closed.", True),
        ("You arrive at desk 1. On the desk 1, you see a mug 2.", False),
        ("You arrive at desk 1.", False),
    ],
)
def test_copies(prediction: str, copied: bool) -> None:
    transition = make_transition(
        observation=HERE,
        history=(Turn("The drawer 1 is closed.", "look"),),
        next_state="You arrive at desk 1. On the desk 1, you see a mug 1.",
    )
    assert is_copy(prediction, transition) == copied


def test_repeating_is_right_where_the_world_does() -> None:
    assert not is_copy(HERE, make_transition(observation=HERE, next_state=HERE))


@pytest.mark.parametrize(
    ("prediction", "real", "empty"),
    [
        ("The next state will describe the contents of the desk.", "On the desk 1, you see a mug 2.", True),
        ("You see some objects.", "On the desk 1, you see a mug 2.", True),
        ("On the desk 1, you see nothing.", "On the desk 1, you see a mug 2.", False),
        ("Nothing happens.", "Nothing happens.", False),
        ("You see nothing.", "Nothing happens.", False),
        ("The user answers.", "Hello, I am Emma Smith.", True),
        ("Hello, I am Noah.", "Hello, I am Emma Smith.", False),
        ("It will be sent.", "It will be sent today.", False),
    ],
)
def test_content_free_answers(prediction: str, real: str, empty: bool) -> None:
    assert is_content_free(prediction, real) == empty


def test_overlap_is_of_the_real_words() -> None:
    assert word_overlap("You pick up the pan.", "You pick up the mug 1.") == 4 / 6
    assert word_overlap("", "You pick up") == 0
    assert word_overlap("anything", "") == 0


def test_metrics_by_hand() -> None:
    groups = [
        make_group(0, "You stand at door 0.", None, "You  stand at door 0.\n"),
        make_group(1, "You are in room 1.", "This will show a door."),
    ]
    assert hacking_metrics(groups) == {
        "hacking/length_ratio": 1.0,  # five words each
        "hacking/copied": 0.25,
        "hacking/content_free": 0.25,
        "hacking/exact": 0.5,
        "hacking/overlap": pytest.approx((1 + 1 + 2 / 5 + 1 / 5) / 4),
    }
    assert hacking_metrics([make_group(0, None)]) == {}


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ({"hacking/length_ratio": 3.0}, "predictions were 3.0 times as long as the real next states"),
        ({"hacking/length_ratio": 0.4}, "predictions were 0.4 times as long"),
        ({"hacking/copied": 0.4}, "40 % of predictions repeated an observation"),
        ({"hacking/content_free": 0.8}, "80 % of predictions named nothing"),
        (
            {"reward": 0.7, "hacking/exact": 0.3},
            "the reward rose from 0.50 to 0.70 while exact matches fell from 50 to 30 %",
        ),
        ({"reward": 0.7, "hacking/overlap": 0.6}, "while words shared with the real next states fell"),
    ],
)
def test_each_sign_is_said_once_a_window(
    later: dict[str, float], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = RewardHackingWatch(patience=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.watch(GOOD)
        assert not caplog.records
        other = RewardHackingWatch(patience=3)
        other.load_state_dict(watch.state_dict())  # as after a crash
        for _ in range(3):
            other.watch(GOOD | later)
    assert len(caplog.records) == 1
    assert words in caplog.text


@pytest.mark.parametrize(
    "later", [{"reward": 0.7}, {"hacking/exact": 0.3}, {"reward": 0.52, "hacking/exact": 0.3}]
)
def test_learning_and_getting_worse_are_no_hacking(
    later: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    watch = RewardHackingWatch(patience=2)
    with caplog.at_level(logging.WARNING):
        for step in (GOOD, GOOD, GOOD | later, GOOD | later):
            watch.watch(step)
    assert not caplog.records


@pytest.mark.heavy
def test_metrics_of_a_run_go_where_the_reward_goes(tiny_model: Path, tmp_path: Path) -> None:
    callbacks: list[Any] = [WeightSync(), RewardHackingWatch(), RewardLogger(tmp_path / "metrics.csv")]
    fit(tmp_path, tiny_model, callbacks)
    rows = rows_of(tmp_path / "metrics.csv")
    well_formed = [step for _, step, name, value in rows if name == "wm/format" and value > 0]
    assert [step for _, step, name, _ in rows if name == "hacking/length_ratio"] == well_formed != []


@pytest.mark.parametrize(("name", "value"), [("patience", 0), ("max_length_ratio", 1.0)])
def test_bad_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"RewardHackingWatch\.{name} is {value}; it must be"):
        RewardHackingWatch(**{name: value})  # type: ignore[arg-type]
