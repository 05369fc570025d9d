"""Signs of reward hacking at their bounds, and what is said of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rwml_callbacks import RewardHackingWatch
from rwml_callbacks.hacking_signs import hacking_metrics, is_content_free, is_copy, word_overlap

from rwml_lightning.schema import Turn
from support.hacking import GOOD, make_group
from support.worlds import make_transition

TWENTY = "abcdefghijklmnopqrst"
ONE_OFF = "abcdefghijklmnopqrs!"  # 95 of 100: 19 of 20 letters
TWO_OFF = "abcdefghijklmnopqr?!"


@pytest.mark.parametrize(
    ("past", "real", "copied"),
    [
        (ONE_OFF, "something else", True),
        (TWO_OFF, "something else", False),
        (ONE_OFF, ONE_OFF, False),  # the world did not change
        (ONE_OFF, TWO_OFF, True),
    ],
)
@pytest.mark.parametrize("place", ["observation", "earlier", "first"])
def test_a_copy_is_of_any_observation_so_far(past: str, real: str, copied: bool, place: str) -> None:
    texts = {"first": "one", "earlier": "two", "observation": "three", place: past}
    history = (Turn(texts["first"], TWENTY), Turn(texts["earlier"], TWENTY))
    transition = make_transition(observation=texts["observation"], history=history, next_state=real)
    assert is_copy(f" {TWENTY.upper()}\n", transition) == copied


@pytest.mark.parametrize(
    ("prediction", "real", "empty"),
    [
        ("THE NEXT STATE is this.", "Mug.", True),
        ("It might then reveal a mug 1.", "A mug 1.", True),  # said, though it names something
        ("The next state is a mug 1.", "The updated state is a mug 1.", False),
        ("A mug 1.", "A new observation: a mug 1.", False),
        ("It reveals a mug.", "A mug.", False),
        ("Total 42.50", "Hello, I am Emma, 7", False),
        ("hello", "hello, i am emma, 7", True),
        ("So Emma", "You see Emma", False),
        ("Emma", "Noah", False),  # the first word of a sentence is no name
    ],
)
def test_what_names_nothing(prediction: str, real: str, empty: bool) -> None:
    assert is_content_free(prediction, real) == empty


def test_numbers_count_where_the_real_text_has_numbers() -> None:
    assert is_content_free("You see Emma", "There are 7")
    assert is_content_free("There are 7", "You see Emma")


def test_shares_are_of_the_real_text() -> None:
    assert word_overlap("MUG", "mug") == 1.0
    assert word_overlap("a b c", "A a b") == 1.0
    assert word_overlap("a", "a b c d") == 0.25
    metrics = hacking_metrics([make_group(0, "one two three four five six", "one")])
    assert metrics["hacking/length_ratio"] == 7 / 10
    assert hacking_metrics([make_group(0, "a")])["hacking/exact"] == 0.0


def test_a_real_text_without_words_divides_nothing() -> None:
    group = make_group(0, "one two")
    wordless = type(group)(make_transition(next_state="..."), group.prompt_ids, "", group.predictions)
    assert hacking_metrics([wordless])["hacking/length_ratio"] == 2.0


def signs(watch: RewardHackingWatch, **later: float) -> list[str]:
    watch._before = dict(GOOD)
    changes = {name if name == "reward" else f"hacking/{name}": value for name, value in later.items()}
    return list(watch._signs(GOOD | changes))


LONG = "predictions were {:.1f} times as long as the real next states"
COPIED = "{} % of predictions repeated an observation instead of predicting one"
NOTHING = "{} % of predictions named nothing where the real next state does"
EXACT = "the reward rose from 0.50 to {:.2f} while exact matches fell from 50 to {} %"
SHARED = (
    "the reward rose from 0.50 to {:.2f} while words shared with the real next states fell from 90 to {} %"
)


@pytest.mark.parametrize(
    ("settings", "later", "said"),
    [
        ({}, {"length_ratio": 2.0}, []),
        ({}, {"length_ratio": 2.1}, [LONG.format(2.1)]),
        ({}, {"length_ratio": 0.5}, []),
        ({}, {"length_ratio": 0.4}, [LONG.format(0.4)]),
        ({"max_length_ratio": 4.0}, {"length_ratio": 3.9}, []),
        ({"max_length_ratio": 4.0}, {"length_ratio": 0.2}, [LONG.format(0.2)]),
        ({}, {"copied": 0.25}, []),
        ({}, {"copied": 0.26}, [COPIED.format(26)]),
        ({"max_copied": 0.1}, {"copied": 0.2}, [COPIED.format(20)]),
        ({}, {"content_free": 0.5}, []),
        ({}, {"content_free": 0.51}, [NOTHING.format(51)]),
        ({"max_content_free": 0.1}, {"content_free": 0.2}, [NOTHING.format(20)]),
        ({"min_change": 0.25}, {"reward": 0.75, "exact": 0.0}, []),
        ({"min_change": 0.25}, {"reward": 0.76, "exact": 0.25}, []),
        ({"min_change": 0.25}, {"reward": 0.76, "exact": 0.24}, [EXACT.format(0.76, 24)]),
        ({}, {"reward": 0.56, "overlap": 0.84}, [SHARED.format(0.56, 84)]),
        ({}, {"reward": 0.54, "overlap": 0.0, "exact": 0.0}, []),
        ({}, {"reward": 0.56, "overlap": 0.86, "exact": 0.46}, []),
        (
            {},
            {"reward": 0.6, "exact": 0.0, "overlap": 0.5, "copied": 1.0},
            [COPIED.format(100), EXACT.format(0.6, 0), SHARED.format(0.6, 50)],
        ),
    ],
)
def test_each_limit_is_its_own(settings: dict[str, Any], later: dict[str, float], said: list[str]) -> None:
    assert signs(RewardHackingWatch(**settings), **later) == said


def test_the_mean_of_a_window_counts_and_each_window_anew(caplog: pytest.LogCaptureFixture) -> None:
    watch = RewardHackingWatch(patience=2)
    steps = [{}, {"hacking/copied": 0.4}, {}, {"hacking/copied": 0.6}, {"hacking/copied": 0.4}, {}]
    with caplog.at_level(logging.WARNING):
        for number, later in enumerate(steps):
            watch.watch(GOOD | later)
            assert len(caplog.records) == (number >= 3)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Over the last 2 steps {COPIED.format(30)}. The reward may favour")


def test_several_signs_are_clauses_of_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RewardHackingWatch(patience=1).watch(GOOD | {"hacking/copied": 0.4, "hacking/length_ratio": 3.0})
    (record,) = caplog.records
    assert f"{LONG.format(3)}; {COPIED.format(40)}. The" in record.getMessage()


def test_ten_steps_are_looked_at_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    watch = RewardHackingWatch()
    for _ in range(9):
        watch.watch(GOOD)
    assert (len(watch.state_dict()["recent"]), watch.state_dict()["before"]) == (9, {})
    watch.watch(GOOD)
    assert watch.state_dict() == {"recent": [], "before": pytest.approx(GOOD)}
    RewardHackingWatch(patience=1, max_length_ratio=1.01)
    with pytest.raises(ValueError, match=r"RewardHackingWatch\.max_length_ratio is nan; it must be above 1"):
        RewardHackingWatch(max_length_ratio=float("nan"))
