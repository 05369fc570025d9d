"""What rewards draw follows from the run's seed and from where in the run it is drawn, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from rwml_lightning.rewards import ContrastiveReward
from rwml_lightning.rewards.controls import Control, coin, derangement, permuted
from rwml_lightning.rewards.near_misses import NEAR_MISSES, near_misses
from rwml_lightning.rewards.phrases import Variant, variants_of
from rwml_lightning.rewards.rewordings import REWORDINGS, rewordings
from rwml_lightning.rewards.vocabulary import Vocabulary, learn_vocabulary
from rwml_lightning.schema import Score
from rwml_lightning.seeds import derive_seed
from support.rewards import LetterReward
from support.worlds import make_transition, make_world

NAMES = Vocabulary((), ())
ROW = [Score(float(n), n / 2, True, {"p": float(n)}) for n in range(5)]


def test_each_kind_transition_and_number_has_a_draw_of_its_own() -> None:
    def draw(_: Any, __: Any, rng: random.Random) -> str:
        return str(rng.random())

    changes = {"one": draw, "two": draw}
    texts = []
    for seed, number in product((0, 1), (0, 1)):
        found = variants_of(changes, make_transition(number), NAMES, seed, 2)
        assert found == [
            Variant(kind, str(random.Random(derive_seed(seed, kind, f"t{number}", n)).random()))
            for kind in changes
            for n in (0, 1)
        ]
        texts += [variant.text for variant in found]
    assert len(set(texts)) == 16


def test_equal_and_empty_texts_are_no_variants() -> None:
    texts: dict[str, str | None] = {"same": "real", "none": None, "empty": "", "a": "x", "b": "x", "c": "y"}
    changes: dict[str, Callable[..., str | None]] = {
        kind: lambda *_, text=text: text for kind, text in texts.items()
    }
    found = variants_of(changes, make_transition(next_state="real"), NAMES, 0, 3)
    assert found == [Variant("a", "x"), Variant("c", "y")]


@pytest.mark.parametrize("per_kind", [1, 3])
def test_near_misses_and_rewordings_are_drawn_by_all_that_they_are_given(per_kind: int) -> None:
    world = make_world()
    transition = make_transition(next_state="You see a cup 1, a pan 2, and a mug 3 on the desk 4.")
    vocabulary = learn_vocabulary([transition, *world])
    for seed in range(4):
        misses = near_misses(transition, vocabulary, seed, per_kind)
        assert misses == variants_of(NEAR_MISSES, transition, vocabulary, seed, per_kind)
        assert rewordings(transition, vocabulary, seed) == variants_of(
            REWORDINGS, transition, vocabulary, seed, 1
        )
    assert near_misses(transition, vocabulary, 3) == variants_of(NEAR_MISSES, transition, vocabulary, 3, 1)


def test_contrasts_are_those_of_seed_0_and_a_vocabulary_of_the_transition_alone() -> None:
    transition = make_transition(next_state="You see a cup 1, a pan 2, and a mug 3 on the desk 4.")
    vocabulary = learn_vocabulary([transition])
    for reward, count in ((ContrastiveReward(), 3), (ContrastiveReward(per_kind=1), 1)):
        expected = variants_of(NEAR_MISSES, transition, vocabulary, 0, count)
        assert reward.contrasts(transition) == [variant.text for variant in expected]


def test_a_coin_is_the_last_bit_of_each_members_seed() -> None:
    assert coin(ROW, 9) == [Score(float(derive_seed(9, n) % 2), None, False) for n in range(5)]


def test_an_order_is_that_of_the_members_seeds() -> None:
    assert permuted(ROW, 9) == [ROW[n] for n in sorted(range(5), key=lambda n: derive_seed(9, n))]


@pytest.mark.parametrize(("name", "draw"), [("coin", coin), ("permuted", permuted)])
def test_a_controls_draw_is_of_run_position_and_transition(name: Any, draw: Any) -> None:
    world = make_world()[:3]
    scores: list[list[Score | None]] = [[*ROW], [*ROW], [ROW[0], None, ROW[2], ROW[3], ROW[4]]]
    answers: list[list[str | None]] = [["a"] * 5] * 3
    for seed, position in product((0, 1), (("wm_grpo", 3), ("validation", 3), ("wm_grpo", 4))):
        told = Control(name, seed, []).apply(LetterReward(), position, world, answers, scores)
        for transition, row, found in zip(world, scores, told, strict=True):
            drawn = draw(row, derive_seed(seed, "control", *position, transition.transition_id))
            assert found == [
                None
                if true is None or other is None
                else replace(true, reward=other.reward, parts={**true.parts, "true_reward": true.reward})
                for true, other in zip(row, drawn, strict=True)
            ]


def test_targets_are_exchanged_by_the_runs_seed() -> None:
    world = make_world()
    for seed in (0, 1):
        places = derangement([t.next_state for t in world], derive_seed(seed, "control", "mismatched"))
        control = Control("mismatched", seed, world)
        assert control.targets == {
            t.transition_id: world[n].next_state for t, n in zip(world, places, strict=True)
        }
    assert Control("coin", 0, world).targets == {}


def test_a_derangement_without_clashes_is_the_permutation_that_the_seed_gives() -> None:
    texts = [str(n) for n in range(4)]
    plain = {seed: sorted(range(4), key=lambda n, seed=seed: derive_seed(seed, n)) for seed in range(60)}
    clashing = {seed for seed, places in plain.items() if any(n == place for n, place in enumerate(places))}
    assert 20 < len(clashing) < 55  # 15 of 24 permutations have a fixed place
    for seed in plain.keys() - clashing:
        assert derangement(texts, seed) == plain[seed]


def test_a_place_that_clashes_is_exchanged_with_the_next_that_does_not() -> None:
    for texts in (["a", "b"], ["a", "a"], ["a", "b", "c", "a"], ["a", "a", "a", "b"], list("aabbc")):
        for seed in range(40):
            places = sorted(range(len(texts)), key=lambda n: derive_seed(seed, n))
            for i in range(len(texts)):
                if texts[places[i]] == texts[i]:
                    turns = [(i + step) % len(texts) for step in range(1, len(texts))]
                    fits = [j for j in turns if texts[i] != texts[j] and texts[i] != texts[places[j]]]
                    j = fits[0] if fits else turns[0] if places[i] == i else i
                    places[i], places[j] = places[j], places[i]
            assert derangement(texts, seed) == places


def test_mismatched_scores_every_member_by_the_exchanged_text() -> None:
    world, reward = make_world()[:5], LetterReward(mode="cosine")
    control = Control("mismatched", 2, world)
    answers: list[list[str | None]] = [[t.next_state, None, "a"][: 1 + n % 3] for n, t in enumerate(world)]
    true = [reward.score([t] * len(row), row) for t, row in zip(world, answers, strict=True)]
    told = control.apply(reward, ("wm_grpo", 0), world, answers, true)
    for transition, row, before, after in zip(world, answers, true, told, strict=True):
        other = replace(transition, next_state=control.targets[transition.transition_id])
        expected = reward.score([other] * len(row), row)
        assert [score.reward for score in after if score] == [score.reward for score in expected if score]
        assert [score.parts["true_reward"] for score in after if score] == [score.reward for score in before]
