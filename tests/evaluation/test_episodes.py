"""Success and what it costs, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.evaluation import (
    EpisodeResult,
    measure_game,
    render_episodes,
    success_metrics,
    summarise_episodes,
)
from rwml_lightning.evaluation.episodes import pass_all_k, pass_at_k
from rwml_lightning.schema import ActionSample, Completion, Episode, EpisodeGroup, Playthrough, Turn
from rwml_lightning.terminal import Terminal


def make_member(turns: str, success: bool | None, kind: str = "heat", reward: float = 0.0) -> Playthrough:
    """Turns as letters: an action each; a small one is not valid."""
    played = tuple(Turn("o", letter, valid=letter.isupper(), reward=reward) for letter in turns)
    sample = ActionSample((1,), Completion((2, 3), (0.0, 0.0), "stop", 0), 0.0)
    episode = Episode("e", "env", "g", "t", 0, played, "end", success, not success, kind)
    return Playthrough(episode, (sample,) * len(played))


def test_one_game_by_hand() -> None:
    group = EpisodeGroup("g", "s", (make_member("ABB", True), make_member("AbbbbC", False)))
    assert measure_game(group) == pytest.approx(
        {
            "success": 0.5,
            "turns": 4.5,
            "truncated": 0.5,
            "invalid_actions": 4 / 9,
            "repeated_actions": (1 + 3) / 9,
            "completion_tokens": 2,
            "steps_to_success": 3,
            "pass@2": 1.0,
            "pass^2": 0.0,
        }
    )


def test_an_environment_that_does_not_say_is_judged_by_its_reward() -> None:
    members = (make_member("A", None, reward=0.5), make_member("A", None))
    assert measure_game(EpisodeGroup("g", "s", members))["success"] == 0.5


def test_an_episode_without_turns_is_counted() -> None:
    found = measure_game(EpisodeGroup("g", "s", (make_member("", False),)))
    assert found == {"success": 0, "turns": 0, "truncated": 1}


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_success(count: int, data: st.DataObject) -> None:
    solved, k = data.draw(st.integers(0, count)), data.draw(st.integers(1, count))
    none = sum(
        1 for mask in range(1 << count) if bin(mask).count("1") == k and not mask & ((1 << solved) - 1)
    )
    assert pass_at_k(count, solved, k) == pytest.approx(1 - none / comb(count, k))


@given(count=st.integers(1, 8), data=st.data())
def test_pass_all_k_is_the_share_of_draws_of_successes_alone(count: int, data: st.DataObject) -> None:
    solved, k = data.draw(st.integers(0, count)), data.draw(st.integers(1, count))
    draws = list(combinations([True] * solved + [False] * (count - solved), k))
    assert pass_all_k(count, solved, k) == pytest.approx(sum(map(all, draws)) / len(draws))


def test_what_the_environment_measures_is_averaged_and_shown() -> None:
    def member(won: bool, **measures: float) -> Playthrough:
        played = make_member("AB", won)
        return replace(played, episode=replace(played.episode, measures=measures))

    group = EpisodeGroup(
        "a", "", (member(True, hops=4, do_nothing=0), member(False, hops=7, do_nothing=0, wrong=0.5))
    )
    values = measure_game(group)
    assert (values["hops"], values["do_nothing"], values["wrong"]) == (5.5, 0, 0.5)
    assert (values["pass@2"], values["pass^2"]) == (1.0, 0.0)
    console = Terminal(width=100, record=True)
    console.print(render_episodes("Evaluation games", {row.name: row for row in summarise_episodes([group])}))
    above, below = console.export_text().split("As the environment measures them")
    assert "nothing" in above
    assert "pass^2" in below
    assert "hops" in below
    assert "hops" not in above


def test_rows_by_split_and_kind() -> None:
    groups = [
        EpisodeGroup("a", "seen", (make_member("AB", True, "heat"),)),
        EpisodeGroup("b", "unseen", (make_member("AB", False, "cool"),)),
        EpisodeGroup("c", "unseen", (make_member("ABC", True, "cool"),)),
    ]
    rows = summarise_episodes(groups)
    assert [(row.name, row.num_games, row.values["success"]) for row in rows] == [
        ("all", 3, pytest.approx(2 / 3)),
        ("seen", 1, 1),
        ("unseen", 2, 0.5),
        ("cool", 2, 0.5),
        ("heat", 1, 1),
    ]
    assert rows[0].values["steps_to_success"] == 2.5
    low, high = rows[0].intervals["success"]
    assert 0 <= low < 2 / 3 < high <= 1
    assert EpisodeResult(**json.loads(json.dumps(asdict(rows[0])))).values == rows[0].values
    metrics = success_metrics(rows, "val")
    assert metrics["val/success"] == pytest.approx(2 / 3)
    assert metrics["val/cool/success"] == 0.5
    assert metrics["val/success_low"] == low
    console = Terminal(width=100, record=True)
    console.print(render_episodes("Evaluation games", {row.name: row for row in rows}))
    text = console.export_text()
    for words in ("games", "success", "steps to", "0.67 ±", "2.5", "unseen"):
        assert words in text
