"""A real sentence-transformers model, tiny and untrained: prompts, length of vectors, texts that are too long."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_callbacks.easy_samples.fingerprint import similarity_settings

from rwml_lightning.evaluation import rollout_metrics
from rwml_lightning.rewards import (
    ContentReward,
    ContrastiveReward,
    EmbeddingReward,
    JudgeReward,
    NextStateReward,
    RewardByKind,
    Server,
    WeightedReward,
)
from rwml_lightning.rewards.sentence_embedder import split_evenly
from rwml_lightning.schema import Completion, Group, Prediction, RolloutBatch, Score
from support.fake_server import FakeServer, embed_letters, serving
from support.models import write_tiny_embedder
from support.worlds import make_transition

HEAD = "abc " * 8  # 24 pieces: more than the 14 that are left of 16 beside the two special ones


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_embedder(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def prompting(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_embedder(tmp_path_factory.mktemp("prompting"), default_prompt="~~~~~~~~~~"))


def make_reward(embedder: str, **settings: Any) -> EmbeddingReward:
    return EmbeddingReward(embedder, mode="cosine", device="cpu", **settings)


def one_score(reward: NextStateReward, prediction: str, real: str) -> Score:
    (score,) = reward.score([make_transition(next_state=real)], [prediction])
    assert score is not None
    return score


def raw_vectors(embedder: str, texts: Sequence[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(embedder, device="cpu").encode(list(texts), prompt=""))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_an_embedder_without_normalisation_of_its_own_gives_cosines(embedder: str) -> None:
    texts = ["abc", "xyz", "abd"]
    raw = raw_vectors(embedder, texts)
    assert abs(np.linalg.norm(raw[0]) - 1) > 0.1
    reward = make_reward(embedder)
    assert np.linalg.norm(reward.embed(texts), axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert one_score(reward, "xyz", "abc").similarity == pytest.approx(cosine(raw[0], raw[1]), abs=1e-6)


def test_a_default_prompt_of_the_embedder_is_not_used(embedder: str, prompting: str) -> None:
    plain = make_reward(embedder).embed(["abc", "xyz"])
    assert np.array_equal(make_reward(prompting).embed(["abc", "xyz"]), plain)
    asked = make_reward(prompting, prompt="~~~~~~~~~~").embed(["abc", "xyz"])
    assert np.array_equal(asked, make_reward(embedder).embed(["~~~~~~~~~~abc", "~~~~~~~~~~xyz"]))
    assert np.abs(asked - plain).max() > 0.01


def test_a_prompt_stands_before_the_text_on_a_server_too() -> None:
    with serving(FakeServer(lambda _, body: (200, embed_letters(body["input"])))) as fake:
        reward = EmbeddingReward(mode="cosine", server=Server("m", fake.url), prompt="a: ")
        score = one_score(reward, "b", "c")
    assert [body["input"] for _, body, _ in fake.requests] == [["a: b", "a: c"]]
    assert "truncated_texts" not in score.parts  # a server does not say


def test_what_a_text_ends_with_counts_with_windows_alone(
    embedder: str, caplog: pytest.LogCaptureFixture
) -> None:
    reward = make_reward(embedder)
    for end in ("xyz", "opq"):
        score = one_score(reward, f"{HEAD}{end}", f"{HEAD}ddd")
        assert score.similarity == pytest.approx(1, abs=1e-6)
        assert score.parts["truncated_texts"] == 2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert (
        f"{embedder} reads only the first 16 tokens of a text, so the similarity ignores the rest" in told[0]
    )
    assert "long_texts to windows" in told[0]
    assert "wm/truncated_texts" in told[0]
    caplog.clear()
    reading = make_reward(embedder, long_texts="windows")
    score = one_score(reading, f"{HEAD}xyz", f"{HEAD}ddd")
    assert score.similarity is not None
    assert score.similarity < 0.995
    assert score.parts["truncated_texts"] == 0
    assert one_score(reading, f"{HEAD}xyz", f"{HEAD}xyz").similarity == pytest.approx(1, abs=1e-6)
    assert not caplog.records


def test_the_limit_counts_special_pieces_and_the_prompt(embedder: str) -> None:
    for prompt, room in (("", 14), ("abcd ", 10)):
        reward = make_reward(embedder, prompt=prompt)
        assert one_score(reward, "a" * room, "b").parts["truncated_texts"] == 0
        assert one_score(reward, "a" * (room + 1), "b").parts["truncated_texts"] == 1


def test_a_text_in_windows_is_the_mean_of_its_parts(embedder: str) -> None:
    reward = make_reward(embedder, long_texts="windows")
    # 29 letters do not fit into two parts of 14; thirds of the 33 characters end at 11 and 22, white space is at 7 and 22
    text = "abcdefg hijkl mnopqrst uvwxyz ABC"
    parts = ["abcdefg", " hijkl mnopqrst", " uvwxyz ABC"]
    vectors = raw_vectors(embedder, parts)
    mean = np.sum([vector / np.linalg.norm(vector) for vector in vectors], axis=0)
    assert reward.embed([text])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_a_text_that_fits_is_the_same_with_windows(embedder: str) -> None:
    texts = ["abc", "a" * 14, "x y z"]
    assert np.array_equal(
        make_reward(embedder).embed(texts), make_reward(embedder, long_texts="windows").embed(texts)
    )


@given(st.text("ab \n", min_size=1, max_size=60), st.integers(1, 9))
def test_parts_make_up_the_text_and_all_fit(text: str, room: int) -> None:
    parts = split_evenly(text, 1, lambda parts: max(map(len, parts)) <= room)
    assert "".join(parts) == text
    assert max(map(len, parts)) <= room
    assert len(parts) >= -(-len(text) // room)


def test_parts_are_cut_at_white_space() -> None:
    assert split_evenly("one two three four", 2, lambda parts: True) == ["one two", " three four"]
    assert split_evenly("onetwothree", 2, lambda parts: True) == ["onetw", "othree"]


def test_a_prompt_that_leaves_no_room_is_refused(embedder: str) -> None:
    with pytest.raises(
        ValueError, match=r"reward.prompt takes 32 tokens, but .* reads 16; shorten the prompt"
    ):
        make_reward(embedder, prompt="a" * 30).embed(["b"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"long_texts": "split"}, "reward.long_texts is 'split'; it must be 'truncate' or 'windows'"),
        ({"long_texts": "windows", "server": Server("m")}, "reward.long_texts is 'windows', but a server"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingReward(**settings)


class Broken(EmbeddingReward):
    """Gives no number for some texts."""

    max_seq_length = None

    def _load(self) -> Any:
        return self

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        strange = {"nan": [np.nan, 1.0], "inf": [np.inf, 1.0], "zeros": [0.0, 0.0]}
        return np.array([strange.get(text, [3.0, 4.0]) for text in texts])


@pytest.mark.parametrize("strange", ["nan", "inf", "zeros"])
def test_a_vector_without_a_direction_is_no_verdict(strange: str, caplog: pytest.LogCaptureFixture) -> None:
    real = make_transition(next_state="real")
    scores = Broken("b").score([real, real, make_transition(next_state=strange)], [strange, "ok", "ok"])
    assert [score if score is None else score.reward for score in scores] == [None, 1, None]
    assert f"b gives a vector of NaN, infinity or zeros for {strange!r}" in caplog.text


def test_cut_texts_are_counted_whatever_reward_they_lie_in(embedder: str) -> None:
    reward = make_reward(embedder)
    long, transition = "x" * 20, make_transition(next_state="ok")
    nested: dict[str, tuple[NextStateReward, str]] = {
        "plain": (reward, "truncated_texts"),
        "kind": (RewardByKind({transition.kind: reward}), "truncated_texts"),
        "content": (ContentReward(reward), "truncated_texts"),
        "contrastive": (ContrastiveReward(embedder=embedder, device="cpu"), "truncated_texts"),
        "weighted": (WeightedReward({"meaning": reward}, {"meaning": 1.0}), "meaning/truncated_texts"),
    }
    for name, (outer, part) in nested.items():
        scores = outer.score([transition] * 2, [long, "short"])
        predictions = tuple(
            Prediction(Completion((1,), (0.0,), "stop", 0), "", "", "", score, 0.0, member)
            for member, score in enumerate(scores)
            if score is not None
        )
        batch = RolloutBatch(0, 0, (Group(transition, (), "", predictions),))
        assert rollout_metrics(batch)[f"wm/{part}"] == 0.5, name


def test_the_packaged_embedders_vectors_are_sentence_transformers_own() -> None:
    from sentence_transformers import SentenceTransformer

    from rwml_lightning.models import resolve_model

    texts = ["On the shelf 1, you see a book 1, a mug 2, and a vase 1.", "Nothing happens.", "You open it."]
    name = "package:all-minilm-l6-v2"
    model = SentenceTransformer(str(resolve_model(name)), device="cpu")
    assert np.array_equal(
        EmbeddingReward(name, device="cpu").embed(texts), model.encode(texts, normalize_embeddings=True)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EmbeddingReward(), EmbeddingReward(prompt="query: ")),
        (EmbeddingReward(), EmbeddingReward(long_texts="windows")),
        (EmbeddingReward(server=Server("a")), EmbeddingReward(server=Server("b"))),
        (JudgeReward(Server("a")), JudgeReward(Server("b"))),
    ],
)
def test_what_similarities_depend_on_is_known_to_the_filter(one: Any, other: Any) -> None:
    assert similarity_settings(one) != similarity_settings(other)
