"""Near misses and rewordings: what each changes, and that a text which offers nothing yields none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.rewards.near_misses import NEAR_MISSES, _another, near_misses
from rwml_lightning.rewards.rewordings import REWORDINGS, rewordings
from rwml_lightning.rewards.vocabulary import Vocabulary, learn_vocabulary
from rwml_lightning.schema import Transition
from support.worlds import make_transition, make_world

HOUSE = [
    make_transition(0, action="take mug 1 from shelf 2", next_state="You pick up the mug 1 from the shelf 2."),
    make_transition(1, action="open drawer 1", next_state="You open the drawer 1. The drawer 1 is open. In it, you see nothing."),
    make_transition(2, action="go to desk 3", next_state="You arrive at desk 3. On the desk 3, you see a cd 1, and a pen 2."),
    make_transition(3, action="take cd 1 from desk 3", next_state="Nothing happens.", valid=False),
]  # fmt: skip


@pytest.fixture
def vocabulary() -> Vocabulary:
    return learn_vocabulary(HOUSE)


def made(transition: Transition, vocabulary: Vocabulary, kind: str, per_kind: int = 20) -> set[str]:
    found = near_misses(transition, vocabulary, seed=0, per_kind=per_kind)
    return {variant.text for variant in found if variant.kind == kind}


def reworded(transition: Transition, vocabulary: Vocabulary) -> dict[str, str]:
    return {variant.kind: variant.text for variant in rewordings(transition, vocabulary, seed=0)}


def test_names_are_learnt_from_the_transitions(vocabulary: Vocabulary) -> None:
    assert set(vocabulary.objects) >= {"mug", "cd", "pen"}
    assert {"shelf", "desk"} <= set(vocabulary.receptacles)
    assert not set(vocabulary.objects) & set(vocabulary.receptacles)
    assert vocabulary.failure == "Nothing happens."
    assert vocabulary.answers["take {0} from {1}"] == ("You pick up the {0} from the {1}.",)


def test_names_need_no_numbers() -> None:
    world = learn_vocabulary(
        [
            make_transition(
                action="put red apple in oak chest", next_state="The red apple lies in the oak chest."
            )
        ]
    )
    assert "red apple" in world.objects
    assert "oak chest" in world.receptacles
    assert [str(thing) for thing in world.things("A Red Apple and an oak chest 2")] == [
        "red apple",
        "oak chest 2",
    ]


@pytest.mark.parametrize(
    ("number", "kind", "expected"),
    [
        (0, "swapped numbers", {"You pick up the mug 2 from the shelf 1."}),
        (0, "another number", {f"You pick up the mug {m} from the shelf {s}." for m, s in [(2, 2), (1, 1), (1, 3)]}),
        (0, "name missing", {"You pick up from the shelf 2.", "You pick up the mug 1 from."}),
        (0, "failure or success", {"Nothing happens."}),
        (0, "item missing", set()),
        (0, "opposite state", set()),
        (1, "opposite state", {"You close the drawer 1. The drawer 1 is closed. In it, you see nothing."}),
        (2, "item missing", {f"You arrive at desk 3. On the desk 3, you see a {item}." for item in ("cd 1", "pen 2")}),
        (3, "failure or success", {"You pick up the cd 1 from the desk 3."}),
    ],
)  # fmt: skip
def test_near_misses_by_kind(number: int, kind: str, expected: set[str], vocabulary: Vocabulary) -> None:
    assert made(HOUSE[number], vocabulary, kind) == expected


def test_another_name_keeps_all_else(vocabulary: Vocabulary) -> None:
    others = [name for name in vocabulary.objects if name != "mug"]
    assert made(HOUSE[0], vocabulary, "another object", 200) == {
        f"You pick up the {name} 1 from the shelf 2." for name in others
    }
    assert "You pick up the mug 1 from the desk 2." in made(HOUSE[0], vocabulary, "another receptacle")


@pytest.mark.parametrize(
    ("which", "text", "expected"),
    [
        (
            "objects",
            "You put the cd 1 and the mug 2 on the desk 3.",
            {f"You put the {one} 1 and the mug 2 on the desk 3." for one in ("bowl", "pen")}
            | {f"You put the cd 1 and the {one} 2 on the desk 3." for one in ("bowl", "pen")},
        ),
        ("receptacles", "On the desk 3, you see a cd 1.", {"On the shelf 3, you see a cd 1."}),
        ("receptacles", "You see a cd 1.", {None}),  # nothing to change
        ("objects", "You see a bowl, a cd, a mug and a pen.", {None}),  # nothing to change it to
        ("objects", "On the desk 3, you see nothing.", {None}),
    ],
)
def test_another_name_is_of_its_kind_and_not_in_the_text(
    which: str, text: str, expected: set[str | None]
) -> None:
    names, transition = (
        Vocabulary(("pen", "mug", "cd", "bowl"), ("desk", "shelf")),
        make_transition(next_state=text),
    )
    change = _another(which)
    assert {change(transition, names, random.Random(seed)) for seed in range(40)} == expected
    other = Vocabulary(names.objects[::-1], names.receptacles[::-1])  # the draw goes by the names alone
    for seed in range(5):
        assert change(transition, other, random.Random(seed)) == change(
            transition, names, random.Random(seed)
        )


def test_an_item_is_added_to_a_list_and_to_none(vocabulary: Vocabulary) -> None:
    assert "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1." in made(
        HOUSE[1], vocabulary, "item added"
    )
    assert "You arrive at desk 3. On the desk 3, you see a cd 1, a mug 1, and a pen 2." in made(
        HOUSE[2], vocabulary, "item added"
    )


def test_the_last_item_leaves_nothing(vocabulary: Vocabulary) -> None:
    carrying = make_transition(next_state="You are carrying: a mug 1.")
    assert made(carrying, vocabulary, "item missing") == {"You are carrying: nothing."}


def test_rewordings_by_kind(vocabulary: Vocabulary) -> None:
    assert reworded(HOUSE[2], vocabulary) == {
        "other words": "You get to desk 3. On the desk 3, you notice a cd 1, and a pen 2.",
        "no articles": "You arrive at desk 3. On desk 3, you see cd 1, and pen 2.",
        "list reordered": "You arrive at desk 3. On the desk 3, you see a pen 2, and a cd 1.",
        "no punctuation": "you arrive at desk 3 on the desk 3, you see a cd 1, and a pen 2",
    }
    empty = make_transition(next_state="You are not carrying anything.")
    assert reworded(empty, vocabulary)["contractions"] == "You're not carrying anything."


def test_a_text_that_offers_nothing_yields_nothing() -> None:
    blank = make_transition(action="42", observation="?", next_state="ok", task="")
    assert rewordings(blank, learn_vocabulary([blank]), 0) == []
    assert [v.kind for v in near_misses(blank, learn_vocabulary([blank]), 0)] == ["failure or success"]


def test_the_same_seed_makes_the_same_texts(vocabulary: Vocabulary) -> None:
    first = [near_misses(t, vocabulary, seed=1, per_kind=3) for t in HOUSE]
    assert first == [near_misses(t, learn_vocabulary(HOUSE[::-1]), seed=1, per_kind=3) for t in HOUSE]
    assert first != [near_misses(t, vocabulary, seed=2, per_kind=3) for t in HOUSE]


@pytest.mark.heavy
@given(st.text(max_size=80), st.text(max_size=40), st.integers(0, 9))
def test_any_text_is_taken(next_state: str, action: str, seed: int) -> None:
    transition = make_transition(next_state=next_state + " a mug 1", action=action)
    vocabulary = learn_vocabulary([transition, *make_world()])
    misses = near_misses(transition, vocabulary, seed, per_kind=2)
    texts = [variant.text for variant in misses]
    assert transition.next_state not in texts
    assert len(texts) == len(set(texts))
    assert [v.kind for v in misses] == sorted((v.kind for v in misses), key=list(NEAR_MISSES).index)
    assert {v.kind for v in rewordings(transition, vocabulary, seed)} <= set(REWORDINGS)
