"""Rewards that see which thing a text is about: by hand, then with the packaged embedder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwml_lightning.rewards import ContentReward, ContrastiveReward, EmbeddingReward, NextStateReward
from rwml_lightning.rewards.content import content, f1
from rwml_lightning.rewards.near_misses import near_misses
from rwml_lightning.rewards.rewordings import rewordings
from rwml_lightning.rewards.vocabulary import Vocabulary, learn_vocabulary
from rwml_lightning.schema import Score
from support.rewards import LetterReward
from support.worlds import make_transition

REAL = "You pick up the mug 1 from the shelf 2."
TAKE = make_transition(action="take mug 1 from shelf 2", next_state=REAL)
NO_NAMES = Vocabulary((), ())


class CountReward:
    """Pays 0.5 for every prediction."""

    success_similarity = 0.7

    def score(self, transitions: Any, predictions: Any) -> list[Score]:
        return [Score(0.0 if p is None else 0.5, None, p is not None, {"x": 1.0}) for p in predictions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REAL, {"taken", "mug 1", "shelf 2"}),
        ("You take mug 1, from Shelf 2!", {"taken", "mug 1", "shelf 2"}),
        ("The drawer 1 is shut.", {"drawer 1", "closed"}),
        ("The drawer 1 isn't open.", {"drawer 1", "nothing", "open"}),
        ("You turned on the lamp.", {"on", "lamp"}),
        ("Nothing happens.", {"nothing", "effect"}),
        ("You see.", set()),
        ("", set()),
    ],
)
def test_content_is_things_numbers_and_states(text: str, expected: set[str]) -> None:
    assert content(text, NO_NAMES) == expected


def test_f1_by_hand() -> None:
    a, b, c = frozenset("a"), frozenset("ab"), frozenset("cd")
    assert f1(b, b) == 1
    assert f1(a, b) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert f1(b, c) == 0
    assert f1(frozenset(), frozenset()) == 1
    assert f1(a, frozenset()) == 0


def test_the_agreement_multiplies_the_inner_reward() -> None:
    reward = ContentReward(CountReward())
    predictions = [REAL, "You pick up the mug 2 from the shelf 1.", "You pick up the mug 1.", None]
    scores = reward.score([TAKE] * 4, predictions)
    assert [s.reward for s in scores] == pytest.approx([0.5, 0.5 / 3, 0.5 * 0.8, 0])
    assert scores[2].parts == {"x": 1.0, "inner_reward": 0.5, "agreement": pytest.approx(0.8)}
    assert scores[3] == Score(0.0, None, False, {"x": 1.0})
    assert reward.success_similarity == 0.7


def test_the_agreement_gates_the_inner_reward() -> None:
    reward = ContentReward(CountReward(), min_agreement=0.8)
    scores = reward.score(
        [TAKE] * 3, [REAL, "You pick up the mug 1.", "You pick up the mug 1 from the desk 1."]
    )
    assert [s.reward for s in scores] == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContentReward(CountReward(), 1.5), r"reward.min_agreement is 1.5"),
        (lambda: ContrastiveReward(margin=2.0), r"reward.margin is 2.0; it must be between -1 and 1"),
        (lambda: ContrastiveReward(per_kind=0), r"reward.per_kind is 0; it must be at least 1"),
        (lambda: ContrastiveReward(tau_d=0.0), r"reward.tau_d is 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class LetterContrastive(ContrastiveReward):
    """With the stand-in embedder."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(embedder="letters", **arguments)
        self.letters = LetterReward().letters

    def _load(self) -> Any:
        return self.letters


class PlaneReward(ContrastiveReward):
    """Real next state at 0 degrees, its one near miss at 60; a prediction is its angle."""

    max_seq_length = None

    def contrasts(self, transition: Any) -> list[str]:
        return ["60"]

    def _load(self) -> Any:
        return self

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_preference_by_hand() -> None:
    transition = make_transition(next_state="0")
    scores = PlaneReward(tau_d=1.0, margin=0.5).score([transition] * 5, ["0", "30", "60", "10", "-30"])
    # p.(r - m) / (1 - r.m): r = (1, 0), m = (1/2, sqrt(3)/2), so (cos a - sqrt(3) sin a): 2 cos(a + 60 degrees)
    expected = [2 * np.cos(np.radians(a + 60)) for a in (0, 30, 60, 10, -30)]
    assert [s.parts["preference"] for s in scores] == pytest.approx([min(e, 1) for e in expected], abs=1e-5)
    assert [s.reward for s in scores] == [1, 0, 0, 1, 1]


def test_reality_itself_passes_every_margin_and_its_near_misses_none() -> None:
    reward = LetterContrastive(margin=1.0)
    misses = reward.contrasts(TAKE)
    assert len(misses) > 5
    scores = reward.score([TAKE] * (len(misses) + 2), [REAL, *misses, None])
    assert scores[0].reward == 1
    assert scores[-1] == Score(0.0, None, False)
    positive = LetterContrastive(margin=0.0, tau_d=2.0).score([TAKE] * len(misses), misses)
    seen = [s for s in positive if s.similarity is not None and s.similarity < 1 - 1e-6]
    assert seen
    assert not any(s.reward for s in seen)
    assert reward.score([], []) == []


def test_a_reward_does_not_depend_on_its_batch() -> None:
    others = [make_transition(n, next_state=f"You see a cup {n}, and a pan 2.") for n in range(3)]
    for reward in (LetterContrastive(), ContentReward(LetterReward())):
        alone = [reward.score([t], [REAL])[0] for t in (TAKE, *others)]
        assert alone == reward.score([TAKE, *others], [REAL] * 4)


def test_a_near_miss_without_a_vector_is_not_compared_with() -> None:
    class Blind(PlaneReward):
        def contrasts(self, transition: Any) -> list[str]:
            return ["nan", "60"]

    class Blinder(PlaneReward):
        def contrasts(self, transition: Any) -> list[str]:
            return ["nan"]

    transition = make_transition(next_state="0")
    for reward, preference in ((Blind(tau_d=1.0), 0.0), (Blinder(tau_d=1.0), 1.0)):
        (score,) = reward.score([transition], ["30"])
        assert score is not None
        assert score.parts["preference"] == pytest.approx(preference, abs=1e-6)


def test_each_text_is_embedded_once() -> None:
    reward = LetterContrastive()
    for _ in range(3):
        reward.score([TAKE, TAKE], [REAL, "a"])
    assert len(reward.letters.embedded) == len(set(reward.letters.embedded))


@pytest.mark.slow
def test_the_packaged_embedder_hardly_sees_numbers_and_states_and_these_rewards_do() -> None:
    drawer = make_transition(1, action="open drawer 1", next_state="You open the drawer 1.")
    swapped, closed = "You pick up the mug 2 from the shelf 1.", "You close the drawer 1."
    assert swapped in texts_of(TAKE, "swapped numbers")
    assert closed in texts_of(drawer, "opposite state")
    embedding: dict[str, Any] = {"embedder": "package:all-minilm-l6-v2", "tau_d": 0.2, "device": "cpu"}
    plain = EmbeddingReward(**embedding)
    scores = plain.score([TAKE, drawer], [swapped, closed])
    assert [s.parts["distance"] for s in scores] == pytest.approx([0.011, 0.061], abs=1e-3)
    assert [s.reward for s in scores] == [1, 1]

    seeing: list[NextStateReward] = [ContentReward(plain, min_agreement=1.0), ContrastiveReward(**embedding)]
    for reward in seeing:
        wrong = reward.score([TAKE, drawer], [swapped, closed])
        assert [s.reward for s in wrong] == [0, 0]
        assert [s.reward for s in reward.score([TAKE, drawer], [REAL, drawer.next_state])] == [1, 1]
    right = [v.text for v in rewordings(TAKE, learn_vocabulary([TAKE]), 0)]
    assert len(right) >= 3
    assert all(s.reward for s in seeing[0].score([TAKE] * len(right), right))


def texts_of(transition: Any, kind: str) -> list[str]:
    return [v.text for v in near_misses(transition, learn_vocabulary([transition]), 0, 3) if v.kind == kind]
