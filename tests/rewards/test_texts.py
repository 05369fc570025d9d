"""The small grammar under near misses and rewordings, by hand: names, lists, phrases, content."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rwml_lightning.rewards import ContentReward
from rwml_lightning.rewards.content import content
from rwml_lightning.rewards.near_misses import NEAR_MISSES
from rwml_lightning.rewards.phrases import both_ways, exchange, listed, pick_list, with_list
from rwml_lightning.rewards.rewordings import REWORDINGS
from rwml_lightning.rewards.vocabulary import (
    Thing,
    Vocabulary,
    learn_vocabulary,
    mentions,
    plain_things,
    slots,
)
from rwml_lightning.schema import Score, Turn
from support.worlds import make_transition

WORLD = Vocabulary(
    ("apple", "red apple", "cup"), ("desk", "oak chest"), "No.", {"take {0}": ("You have the {0}.",)}
)


def texts_of(change: Any, next_state: str, vocabulary: Vocabulary = WORLD, **fields: Any) -> set[str | None]:
    """All that a change makes of a text, over many draws."""
    transition = make_transition(next_state=next_state, **fields)
    return {change(transition, vocabulary, random.Random(seed)) for seed in range(60)}


def test_mentions_are_the_longest_names_with_their_numbers_and_places() -> None:
    text = "A Red Apple 2, red apples, an apple, oak chest 31 and Desk 1x"
    found = [(text[start:end], thing) for start, end, thing in mentions(text, WORLD.names)]
    assert found == [
        ("Red Apple 2", Thing("red apple", 2)),
        ("apple", Thing("apple", None)),
        ("oak chest 31", Thing("oak chest", 31)),
        ("Desk", Thing("desk", None)),
    ]
    assert WORLD.things("apple 1, apple 2, apple 1") == [Thing("apple", 1), Thing("apple", 2)]
    assert next(iter(mentions("one two three", {"one two three", "two", "three"})))[2].name == "one two three"
    assert [one.name for _, _, one in mentions("one two three four", {"two three four", "four"})] == [
        "two three four"
    ]


def test_a_thing_is_replaced_wherever_it_is_named() -> None:
    assert (
        WORLD.replace("An apple 1, apple 2 and apple 1.", Thing("apple", 1), "cup 7")
        == "An cup 7, apple 2 and cup 7."
    )
    assert WORLD.replace("Nothing.", Thing("apple", 1), "cup 7") == "Nothing."
    assert (
        slots("{put} apple 1 in desk 2", [Thing("apple", 1), Thing("desk", 2)], WORLD) == "{{put}} {0} in {1}"
    )


def test_plain_things_are_numbered_words_and_nouns_after_articles() -> None:
    assert plain_things("You see a Cup 1, the lamp, and see 3 of an owl at") == [
        Thing("cup", 1), Thing("lamp", None), Thing("owl", None),
    ]  # fmt: skip
    assert plain_things("a big lamp, the it, some tea.") == [Thing("tea", None)]


def test_names_are_learnt_from_history_observation_action_and_next_state() -> None:
    transition = make_transition(
        history=(Turn("a fan 1", "use key"),), observation="a pot 2", action="take blue jug from tin box",
        next_state="The lid is in the jar 3.",
    )  # fmt: skip
    learnt = learn_vocabulary([transition])
    assert learnt.objects == ("blue jug", "fan", "lid", "pot")
    assert learnt.receptacles == ("jar", "tin box")
    assert learnt.failure == "Nothing happens."
    assert learnt.answers == {"take {0} from {1}": ("The lid is in the jar 3.",)}


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("the cup 1 in the desk 1", True), ("the cup 1 in/on desk 1", True), ("the cup 1 ON A desk 1", True),
        ("the cup 1 next to the desk 1", False), ("the cup 1 with the desk 1", False), ("cup 1 to an desk 1", True),
    ],
)  # fmt: skip
def test_a_receptacle_stands_behind_a_preposition_of_place(text: str, held: bool) -> None:
    learnt = learn_vocabulary([make_transition(action="42", observation="?", next_state=text)])
    assert learnt.receptacles == (("desk",) if held else ())
    assert learnt.objects == (("cup",) if held else ("cup", "desk"))


def test_the_failure_is_the_most_common_answer_to_what_was_refused() -> None:
    def learn(*answers: str) -> str:
        return learn_vocabulary(
            [make_transition(n, next_state=a, valid=False) for n, a in enumerate(answers)]
        ).failure

    assert learn("No.", "Never.", "No.") == "No."
    assert learn("No.", "Never.") == "Never."  # the first by name of two equally common
    right = [make_transition(n, next_state="Yes.") for n in range(3)]
    refused = make_transition(4, action="take cup 1", next_state="No.", valid=False)
    learnt = learn_vocabulary([*right, refused])
    assert learnt.failure == "No."
    assert set(learnt.answers.values()) == {("Yes.",)}  # what was refused answers nothing


def test_answers_are_kept_by_form_of_action_once_and_sorted() -> None:
    seen = ["You see the cup 1.", "The cup 1 is here.", "You see the cup 1."]
    learnt = learn_vocabulary(
        [make_transition(n, action="find cup 1", next_state=s) for n, s in enumerate(seen)]
    )
    assert learnt.answers == {"find {0}": ("The {0} is here.", "You see the {0}.")}


@pytest.mark.parametrize(
    ("action", "names"),
    [
        ("take the red cup", {"red cup"}), ("put red apple in/on oak chest", {"red apple", "oak chest"}),
        ("go to desk 1", {"desk"}), ("look", set()), ("examine it", set()), ("  open   box ", {"box"}),
        ("say one two three four", set()), ("clean a cup now", set()), ("heat egg with pan using fork", {"egg", "pan", "fork"}),
    ],
)  # fmt: skip
def test_names_in_an_action(action: str, names: set[str]) -> None:
    learnt = learn_vocabulary([make_transition(action=action, observation="?", next_state="ok")])
    assert set(learnt.names) == names


def test_phrases_are_exchanged_once_the_longest_first_with_their_capital() -> None:
    pairs = both_ways([("is open", "is closed"), ("open", "shut"), ("turn on", "turn off")])
    assert pairs["shut"] == "open"
    assert pairs["open"] == "shut"
    assert (
        exchange("Open. It IS OPEN, shut, reopen; turn off", pairs)
        == "Shut. It Is closed, open, reopen; turn on"
    )


@pytest.mark.parametrize(
    ("text", "items", "changed"),
    [
        ("You see a mug 1, and a pen 2.", ["a mug 1", "a pen 2"], "You see a pen 2, and a mug 1."),
        ("You see a mug 1 and a pen 2.", ["a mug 1", "a pen 2"], "You see a pen 2 and a mug 1."),
        (
            "Here: an owl, some red tea and a pen.",
            ["an owl", "some red tea", "a pen"],
            "Here: a pen, some red tea and an owl.",
        ),
        ("There is nothing.", [], "There is nothing."),
    ],
)
def test_a_list_is_taken_apart_and_joined_as_it_was(text: str, items: list[str], changed: str) -> None:
    found, parts = pick_list(text, random.Random(0))
    assert found is not None
    assert parts == items
    assert with_list(found, items[::-1]) == changed
    assert listed(text) == found[0]


def test_lists_are_picked_at_random_and_may_be_missing() -> None:
    text = "On it is a cup 1. In it is a pen 2, and a pan 3."
    assert {tuple(pick_list(text, random.Random(seed))[1]) for seed in range(20)} == {
        ("a cup 1",),
        ("a pen 2", "a pan 3"),
    }
    assert listed(text) == "a cup 1 a pen 2, and a pan 3"
    assert pick_list("You wait.", random.Random(0)) == (None, [])
    found, _ = pick_list("You see a cup 1.", random.Random(0))
    assert found is not None
    assert with_list(found, []) == "You see nothing."
    assert with_list(found, ["a", "b", "c"]) == "You see a, b, and c."


@pytest.mark.parametrize(
    ("kind", "next_state", "expected"),
    [
        ("another object", "The apple 1 is in the desk 2.", {"The cup 1 is in the desk 2.", "The red apple 1 is in the desk 2."}),
        ("another object", "The desk 2 is here.", {None}),
        ("another receptacle", "The apple 1 is in the desk 2.", {"The apple 1 is in the oak chest 2."}),
        ("another receptacle", "The desk 2, the oak chest 1.", {None}),
        ("another number", "The apple 1, the cup.", {"The apple 2, the cup."}),
        ("another number", "The apple 5.", {"The apple 4.", "The apple 6."}),
        ("another number", "The apple.", {None}),
        ("swapped numbers", "A cup 1, a desk 2, a desk 1.", {"A cup 2, a desk 1, a desk 1."}),
        ("swapped numbers", "A cup 1, a desk 1, {x}.", {None}),
        ("swapped numbers", "{x} cup 3, desk 2", {"{x} cup 2, desk 3"}),
        ("name missing", "Take the cup 1 , please.", {"Take, please."}),
        ("name missing", "The CUP shines. Some apple 1!", {"shines. Some apple 1!", "The CUP shines.!"}),
        ("name missing", "You see a cup 1.", {None}),  # it stands in a list
        ("item missing", "You see a cup 1, and a pen 2.", {"You see a cup 1.", "You see a pen 2."}),
        ("item missing", "You see nothing.", {None}),
        ("item missing", "You wait.", {None}),
        ("item added", "You see a cup.", {f"You see {pair}." for pair in (
            "a cup, and a apple", "a cup, and a red apple", "a apple, and a cup", "a red apple, and a cup")}),
        ("item added", "You see nothing.", {f"You see a {name} 1." for name in ("apple", "red apple", "cup")}),
        ("item added", "You wait for apple, red apple and cup.", {None}),
        ("opposite state", "It is open. Turn on the cup.", {"It is closed. Turn off the cup."}),
        ("failure or success", "It is open.", {"No."}),
    ],
)  # fmt: skip
def test_near_misses_of_a_text(kind: str, next_state: str, expected: set[str | None]) -> None:
    assert texts_of(NEAR_MISSES[kind], next_state) == expected


def test_a_failure_becomes_an_answer_that_the_action_got_elsewhere() -> None:
    change = NEAR_MISSES["failure or success"]
    assert texts_of(change, "No.", action="take cup 4") == {"You have the cup 4."}
    assert texts_of(change, "No.", action="drop cup 4") == {None}


@pytest.mark.parametrize(
    ("kind", "next_state", "expected"),
    [
        ("no articles", "The cup is in a box, an owl on the ...", {"cup is in box, owl on the ..."}),
        ("no punctuation", "It Works! 1.5 m. Yes.", {"it works 1.5 m yes"}),
        ("other words", "You see nothing. You see a cup.", {"There is nothing. You notice a cup."}),
        ("other words", "There is nothing.", {"There is nothing."}),  # one way alone
        ("contractions", "It isn't. You are. There's no x.", {"It is not. You're. There is no x."}),
        (
            "list reordered",
            "a cup 1, a pen 2, and a pan 3.",
            {"a pen 2, a pan 3, and a cup 1.", "a pan 3, a cup 1, and a pen 2."},
        ),
        ("list reordered", "a cup 1.", {None}),
        ("list reordered", "You wait.", {None}),
    ],
)
def test_rewordings_of_a_text(kind: str, next_state: str, expected: set[str | None]) -> None:
    assert texts_of(REWORDINGS[kind], next_state) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It isn\N{RIGHT SINGLE QUOTATION MARK}t OPEN", {"nothing", "open"}),
        ("switches off, Turned On", {"on", "off"}),
        ("You pick a red apple and an oak chest", {"taken", "red apple", "oak chest"}),
        ("reopen", set()),
    ],
)
def test_content_with_a_vocabulary(text: str, expected: set[str]) -> None:
    assert content(text, WORLD) == expected


class Half:
    """Pays 0.5 for every prediction but one."""

    success_similarity = 0.7

    def score(self, transitions: Any, predictions: Any) -> list[Score | None]:
        return [None if p == "silence" else Score(0.5, 0.1, True) for p in predictions]


def test_agreement_is_measured_by_each_transitions_own_names() -> None:
    transitions = [
        make_transition(n, action=f"take {name}", next_state=f"{name} and a cup 1")
        for n, name in enumerate(("red hat", "big cat"))
    ]
    scores = ContentReward(Half()).score(transitions, ["red hat", "red hat"])
    assert [score and score.parts["agreement"] for score in scores] == [pytest.approx(2 / 3), 0]
    assert ContentReward(Half()).score(transitions, ["silence", "red hat"])[0] is None
    assert scores[0] is not None
    assert (scores[0].similarity, scores[0].well_formed) == (0.1, True)


@pytest.mark.parametrize("least", [0.0, -0.5, 1.01])
def test_a_least_agreement_lies_above_0_and_up_to_1(least: float) -> None:
    with pytest.raises(ValueError, match=rf"reward\.min_agreement is {least}"):
        ContentReward(Half(), least)
    assert ContentReward(Half(), 1.0).min_agreement == 1.0
