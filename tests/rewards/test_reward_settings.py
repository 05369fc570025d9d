"""Each setting of a reward reaches what it is for, at its default and off it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rwml_lightning.rewards import (
    ContentReward,
    ContrastiveReward,
    EmbeddingReward,
    ExactMatchReward,
    JudgeReward,
    RougeReward,
    Server,
)
from rwml_lightning.rewards.base import NO_PREDICTION, score_checked
from rwml_lightning.rewards.controls import Control
from rwml_lightning.rewards.rouge import rouge
from rwml_lightning.rewards.sentence_embedder import SentenceEmbedder, split_evenly
from rwml_lightning.rewards.server import ServerClient
from rwml_lightning.schema import Score
from support.rewards import LetterReward
from support.worlds import make_transition

EMBEDDING = {
    "embedder": "Qwen/Qwen3-Embedding-8B", "tau_d": 0.2, "mode": "threshold", "batch_size": 64, "device": None,
    "cache_size": 100_000, "server": None, "prompt": "", "long_texts": "truncate",
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (EmbeddingReward, EMBEDDING),
        (ContrastiveReward, {**EMBEDDING, "margin": 0.5, "per_kind": 3}),
        (RougeReward, {"variant": "rougeL", "round_to": None, "success_similarity": 0.8}),
        (
            lambda: JudgeReward(Server("m")),
            {"server": Server("m"), "scale": "binary", "max_tokens": 1024, "success_similarity": 0.5},
        ),
        (lambda: ServerClient(Server("m")), {"server": Server("m"), "setting": "reward.server"}),
    ],
    ids=["embedding", "contrastive", "rouge", "judge", "client"],
)
def test_defaults_are_those_that_the_docs_state(make: Callable[[], Any], expected: dict[str, Any]) -> None:
    reward = make()
    assert {name: getattr(reward, name) for name in expected} == expected


def test_settings_off_their_defaults_are_kept() -> None:
    settings = {
        "embedder": "e", "tau_d": 2.0, "mode": "cosine", "batch_size": 3, "device": "cpu", "cache_size": 5, "prompt": "p",
        "long_texts": "windows",
    }  # fmt: skip
    for reward in (EmbeddingReward(**settings), ContrastiveReward(margin=-1.0, per_kind=1, **settings)):  # type: ignore[arg-type]
        assert {name: getattr(reward, name) for name in settings} == settings
        assert reward.success_similarity == -1
    assert ContrastiveReward(margin=1.0).margin == 1
    with pytest.raises(ValueError, match=r"reward\.margin is -1\.1"):
        ContrastiveReward(margin=-1.1)


def test_the_model_is_loaded_from_its_folder_onto_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    from rwml_lightning.models import resolve_model

    made: list[Any] = []
    monkeypatch.setattr(
        sentence_transformers,
        "SentenceTransformer",
        lambda *names, **settings: made.append((names, settings)),
    )
    name = "package:all-minilm-l6-v2"
    EmbeddingReward(name, device="cpu")._load()
    assert made == [((str(resolve_model(name)),), {"device": "cpu"})]


class Model:
    """Keeps how it was asked; a text of letters is embedded as how many a and b it has."""

    max_seq_length = None

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = dtype
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def encode(self, texts: list[str], **settings: Any) -> np.ndarray:
        self.calls.append((list(texts), settings))
        return np.array([[text.count("a"), text.count("b")] for text in texts], dtype=self.dtype)


class ModelReward(ContrastiveReward):
    def __init__(self, misses: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(embedder="own", **settings)
        self.model = Model()
        self.misses = list(misses)

    def _load(self) -> Any:
        return self.model

    def contrasts(self, transition: Any) -> list[str]:
        return self.misses


def test_the_model_is_asked_with_prompt_and_batch_size_and_shows_no_bar() -> None:
    reward = ModelReward(batch_size=3, prompt="p: ")
    reward.embed(["a", "b"])
    assert reward.model.calls == [
        (["a", "b"], {"prompt": "p: ", "batch_size": 3, "show_progress_bar": False})
    ]


def test_vectors_have_unit_length_in_float32_whatever_the_model_computes_in() -> None:
    for dtype in (np.float16, np.float64):
        (found,) = SentenceEmbedder(Model(dtype), "m", 8, "", "truncate").encode(["aaaabb"])  # type: ignore[arg-type]
        assert found.vector is not None
        assert found.vector.dtype == np.float32
        assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-6)
        assert found.vector[0] == pytest.approx(2 / 5**0.5, abs=1e-6)
        assert found.truncated is False


def test_a_text_without_a_vector_is_shown_in_part(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (found,) = SentenceEmbedder(Model(), "m", 8, "", "truncate").encode(["x" * 90])  # type: ignore[arg-type]
    assert found.vector is None
    assert caplog.records[-1].getMessage() == f"m gives a vector of NaN, infinity or zeros for {'x' * 80!r}"


def test_near_misses_of_a_step_are_embedded_at_once() -> None:
    reward = ModelReward(["ab", "abb"])
    transitions = [make_transition(n, next_state="a" * (n + 1)) for n in range(3)]
    reward.score(transitions, ["b", None, "aab"])
    assert [texts for texts, _ in reward.model.calls] == [["b", "aab", "a", "aaa"], ["ab", "abb"]]


def test_a_preference_of_just_the_margin_is_paid() -> None:
    # r = (1, 0), m = (0, 1), so that the preference of p is its difference of coordinates over 1.
    transition = make_transition(next_state="a")
    for margin, paid in ((1.0, 1.0), (0.99, 1.0)):
        (score,) = ModelReward(["b"], margin=margin, tau_d=2.0).score([transition], ["a"])
        assert score is not None
        assert (score.reward, score.parts["preference"]) == (paid, 1.0)
    (score,) = ModelReward(["b"], margin=-1.0, tau_d=2.0).score([transition], ["b"])
    assert score is not None
    assert (score.reward, score.parts["preference"]) == (1.0, -1.0)
    assert score.similarity == pytest.approx(0)
    assert score.parts == {"distance": pytest.approx(1), "truncated_texts": 0.0, "preference": -1.0}


def test_the_cache_keeps_what_returns_and_up_to_its_size() -> None:
    reward = ModelReward(cache_size=3)
    for texts, asked in (
        (["a", "b"], ["a", "b"]),
        (["ab", "b"], ["ab"]),  # three in all: none has to go
        (["a"], []),
        (["abb", "b"], ["abb"]),  # a fourth: of the others "b" alone is kept
        (["a", "b"], ["a"]),
    ):
        reward.model.calls.clear()
        reward.embed(texts)
        assert [text for call, _ in reward.model.calls for text in call] == asked


@pytest.mark.parametrize(("cosine", "paid"), [(0.5, 0.5), (0.0, 0.0), (-0.5, 0.0), (1.0, 1.0)])
def test_cosine_mode_pays_what_is_above_0(cosine: float, paid: float) -> None:
    assert EmbeddingReward(mode="cosine").reward(cosine) == paid


def test_rouge_is_of_the_longest_common_subsequence_unless_asked_otherwise() -> None:
    assert rouge("b a c", "a b c") == rouge("b a c", "a b c", "rougeL") == pytest.approx(2 / 3)
    assert rouge("b a c", "a b c", "rouge1") == 1


def test_equal_words_in_other_clothes_are_equal() -> None:
    assert rouge("The, Mug.", "the mug", "rouge2") == 1
    assert rouge("...", "...", "rouge1") == 1
    assert rouge(" . ", ".", "rouge1") == 1
    assert rouge("", "a") == 0


def test_the_similarity_of_an_exact_match_is_its_reward() -> None:
    scores = ExactMatchReward().score([make_transition(next_state="a b")] * 3, ["a  b", "a", None])
    assert scores == [Score(1.0, 1.0, True), Score(0.0, 0.0, True), NO_PREDICTION]


class Ones:
    """Gives as many scores as there are predictions."""

    success_similarity = 0.5

    def score(self, transitions: Any, predictions: Any) -> list[Score | None]:
        return [Score(1.0, 1.0, True) for _ in predictions]


@pytest.mark.parametrize(
    "make",
    [RougeReward, ExactMatchReward, lambda: ContentReward(Ones()), lambda: JudgeReward(Server("m"))],
    ids=["rouge", "exact", "content", "judge"],
)
def test_a_prediction_belongs_to_one_transition(make: Callable[[], Any]) -> None:
    reward = make()
    for transitions, predictions in (([make_transition()], ["a", "b"]), ([make_transition()] * 2, ["a"])):
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is "):
            reward.score(transitions, predictions)


def test_checked_scores_belong_to_one_transition_each() -> None:
    for transitions in ([], [make_transition()] * 2):
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is "):
            score_checked(Ones(), transitions, ["a"])


@pytest.mark.parametrize("name", ["mismatched", "coin", "permuted"])
def test_a_control_takes_a_row_of_scores_for_each_transition(name: Any) -> None:
    world = [make_transition(n) for n in range(3)]
    row: list[Score | None] = [Score(1.0, 1.0, True)]
    for transitions, scores in ((world, [row] * 2), (world[:2], [row]), (world[:2], [row] * 3)):
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is "):
            Control(name, 0, world).apply(LetterReward(), ("wm_grpo", 0), transitions, [["a"]] * 2, scores)


def test_scores_have_as_many_members_as_predictions() -> None:
    world, row = [make_transition(n) for n in range(2)], [Score(1.0, 1.0, True)] * 2
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is "):
        Control("mismatched", 0, world).apply(LetterReward(), ("wm_grpo", 0), world, [["a"]] * 2, [row] * 2)


def test_parts_are_the_fewest_that_fit_and_none_is_lost() -> None:
    tried: list[list[str]] = []

    def fit(parts: Sequence[str]) -> bool:
        tried.append(list(parts))
        return len(parts) == 4

    assert split_evenly("ab cd ef gh", 2, fit) == ["ab", " cd", " ef", " gh"]
    assert [len(parts) for parts in tried] == [2, 3, 4]
    assert split_evenly("abcd", 4, lambda parts: True) == list("abcd")
    assert split_evenly("a bcd", 2, lambda parts: True) == ["a", " bcd"]
    assert split_evenly(" abcdef", 2, lambda parts: True) == [
        " ab",
        "cdef",
    ]  # no empty part before the first space
