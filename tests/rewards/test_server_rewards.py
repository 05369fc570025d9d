"""Rewards behind a server that is down, slow, busy, full of nonsense, or well."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.rewards import EmbeddingReward, JudgeReward, Server, ServerError
from rwml_lightning.rewards.embedding_server import EmbeddingServer, read_embeddings
from rwml_lightning.rewards.judge import read_verdict
from rwml_lightning.rewards.server import NoAnswerError
from support.fake_server import FakeServer, embed_letters, say, serving
from support.http import free_port
from support.worlds import make_transition

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_lightning.rewards.server.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("rwml_lightning.rewards.server.LONGEST_PAUSE_S", 0.05)


def server_of(fake: FakeServer, **changes: Any) -> Server:
    return Server(**{"model": "m", "base_url": fake.url, "timeout_s": 5.0, "max_wait_s": 5.0, **changes})


def embed(
    fake: FakeServer, texts: list[str], batch_size: int = 64, **changes: Any
) -> list[np.ndarray | None]:
    return EmbeddingServer(server_of(fake, **changes), batch_size).encode(texts)


def test_texts_are_embedded_in_batches_and_in_their_order() -> None:
    with serving(FakeServer(lambda _, body: (200, embed_letters(body["input"])))) as fake:
        vectors = embed(
            fake, ["a", "bb", "cb", "c", "ab"], batch_size=2, extra_body={"truncate_prompt_tokens": -1}
        )
    half = 0.5**0.5
    expected = [[1, 0, 0], [0, 1, 0], [0, half, half], [0, 0, 1], [half, half, 0]]
    assert np.stack([v for v in vectors if v is not None]) == pytest.approx(np.array(expected), abs=1e-6)
    assert sorted(len(body["input"]) for _, body, _ in fake.requests) == [1, 2, 2]
    assert {path for path, _, _ in fake.requests} == {"/v1/embeddings"}
    assert all(body["model"] == "m" and body["truncate_prompt_tokens"] == -1 for _, body, _ in fake.requests)


def test_the_embedding_reward_scores_by_a_server_and_asks_for_each_text_once() -> None:
    with serving(FakeServer(lambda _, body: (200, embed_letters(body["input"])))) as fake:
        reward = EmbeddingReward(tau_d=0.5, server=server_of(fake))
        for _ in range(2):
            scores = reward.score([make_transition(next_state="aab")] * 3, ["ab", "c", None])
    assert [score.reward if score else None for score in scores] == [1, 0, 0]
    assert scores[0] is not None
    assert scores[0].similarity == pytest.approx(3 / 10**0.5)
    assert [body["input"] for _, body, _ in fake.requests] == [["ab", "c", "aab"]]


def test_a_text_that_the_server_refuses_leaves_its_prediction_without_a_score(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        too_long = any(len(text) > 5 for text in body["input"])
        return (400, {"error": "too long"}) if too_long else (200, embed_letters(body["input"]))

    with serving(FakeServer(answer)) as fake:
        reward = EmbeddingReward(server=server_of(fake))
        scores = reward.score([make_transition(next_state="a")] * 3, ["a", "a" * 9, "b"])
    assert [score.reward if score else None for score in scores] == [1, None, 0]
    assert "responded 400 Bad Request" in caplog.text
    assert "'aaaaaaaaa'" in caplog.text


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (b"<html>", "Expecting value"),
        ({"object": "list"}, "no list of vectors in data"),
        ({"data": [{"embedding": [1.0]}]}, "1 vectors for 2 texts"),
        ({"data": [{"index": 0, "embedding": [1.0]}] * 2}, "2 vectors for 2 texts"),
        ({"data": [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}]}, "vectors of different lengths"),
        ({"data": [{"embedding": [1.0]}, {"embedding": [float("nan")]}]}, "a vector of NaN"),
        ({"data": [{"embedding": [1.0]}, {"embedding": [0.0]}]}, "a vector of NaN, infinity or zeros"),
        ({"data": [{"embedding": "AAAA"}, {"embedding": "AAAA"}]}, "numbers"),
        ({"data": [{"embedding": 1}, {"embedding": 2}]}, "not a list of numbers"),
    ],
)
def test_nonsense_is_asked_for_again_and_then_told(nonsense: Any, why: str) -> None:
    with serving(FakeServer(lambda *_: (200, nonsense))) as fake:
        with pytest.raises(NoAnswerError, match=f"embeddings gave no usable response in 3 attempts.*{why}"):
            embed(fake, ["a", "b"], retries=2)
        assert len(fake.requests) == 3

    def mended(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, nonsense) if number == 0 else (200, embed_letters(body["input"]))

    with serving(FakeServer(mended)) as fake:
        assert len(embed(fake, ["a", "b"], retries=1)) == 2


def test_vectors_that_change_their_width_are_nonsense() -> None:
    def answer(number: int, _: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"data": [{"embedding": [1.0] * (3 if number else 2)}]}

    with serving(FakeServer(answer)) as fake:
        server = EmbeddingServer(server_of(fake, retries=0), 8)
        server.encode(["a"])
        with pytest.raises(NoAnswerError, match="vectors of 3 numbers, but earlier vectors had 2"):
            server.encode(["b"])


def test_a_server_that_is_down_is_named_when_waiting_is_over(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeServer(lambda *_: (200, {}), port=free_port())
    started = time.monotonic()
    with pytest.raises(ServerError) as stopped:
        embed(fake, ["a", "b", "c"], batch_size=1, max_wait_s=0.3)
    assert 0.3 <= time.monotonic() - started < 3
    message = str(stopped.value)
    assert message.startswith(
        f"{fake.url}/embeddings has not responded for 0.3 s (reward.server.max_wait_s): "
    )
    assert "run the same command again to resume from the last checkpoint" in message
    assert "\n" not in message
    assert [r.getMessage().count("; waiting up to") for r in caplog.records] == [1]


def test_a_server_that_comes_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeServer(lambda _, body: (200, embed_letters(body["input"])), port=free_port())
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.extend(embed(fake, ["a"], max_wait_s=30)))
    waiting.start()
    deadline = time.monotonic() + 10
    while "; waiting up to" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    with serving(fake):
        waiting.join(timeout=20)
        assert len(found) == 1
    assert f"{fake.url}/embeddings responds again" in caplog.text


def test_waiting_for_a_server_ends_with_ctrl_c() -> None:
    fake = FakeServer(lambda *_: (200, {}), port=free_port())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    started = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            embed(fake, ["a"] * 50, batch_size=1, max_wait_s=30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(status: int) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return (status, {}) if number < 5 else (200, embed_letters(body["input"]))

    with serving(FakeServer(answer)) as fake:
        assert len(embed(fake, ["a"], retries=0)) == 1


@pytest.mark.heavy
def test_a_slow_server_times_out() -> None:
    end = threading.Event()
    with serving(FakeServer(lambda *_: (200, {"late": end.wait(10)}))) as fake:
        started = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"no response within 0.2 s \(reward.server.timeout_s\)"):
            embed(fake, ["a"], timeout_s=0.2, retries=1)
        assert time.monotonic() - started < 3
        end.set()


@pytest.mark.parametrize("status", [302, 401, 404])
def test_the_wrong_model_or_key_stops_at_once_and_shows_no_key(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(FakeServer(lambda *_: (status, {"error": f"wrong key {KEY}"}))) as fake:
        with pytest.raises(ServerError, match=f"responded {status} .*reward.server.model") as stopped:
            embed(fake, ["a"], api_key_env="TEST_KEY")
        assert [headers["Authorization"] for _, _, headers in fake.requests] == [f"Bearer {KEY}"]
    assert KEY not in str(stopped.value)
    assert KEY not in caplog.text
    assert KEY not in repr(Server("m", api_key_env="TEST_KEY"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout_s": 0.0}, r"reward.server.timeout_s is 0.0; it must be at least"),
        ({"retries": -1}, r"reward.server.retries is -1"),
        ({"concurrency": 0}, r"reward.server.concurrency is 0"),
        ({"max_wait_s": float("nan")}, r"reward.server.max_wait_s is nan"),
        ({"base_url": "localhost:8000"}, r"reward.server.base_url must look like"),
        (
            {"base_url": f"http://me:{KEY}@host/v1"},
            r"reward.server.base_url .* without user, password, query and",
        ),
        ({"base_url": f"http://host/v1?api_key={KEY}"}, r"put a key into an environment variable"),
        ({"base_url": f"http://host/v1#{KEY}"}, r"reward.server.base_url must look like"),
        ({"base_url": f"http://host?api_key={KEY}"}, r"reward.server.base_url must look like"),
        ({"api_key_env": KEY}, r"never put the key itself into a config"),
        ({"api_key_env": "RWML_NOT_SET"}, r"names RWML_NOT_SET, which is not set"),
        ({"api_key_env": "RWML_WITH_NEWLINE"}, r"names RWML_WITH_NEWLINE, which holds white space"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWML_WITH_NEWLINE", f"{KEY}\n")  # httpx shows a header that it cannot send
    with pytest.raises(ValueError, match=message) as refused:
        JudgeReward(Server(**{"model": "m", **changes}))
    assert KEY not in str(refused.value)


def judge(
    fake: FakeServer, predictions: list[str | None], scale: Any = "binary", **changes: Any
) -> list[Any]:
    reward = JudgeReward(server_of(fake, **changes), scale)
    scores = reward.score([make_transition(next_state="You open the safe.")] * len(predictions), predictions)
    return [None if score is None else score.reward for score in scores]


def test_the_judge_sees_action_reality_and_prediction_and_is_asked_once_a_pair() -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        user = body["messages"][1]["content"]
        assert "Action: go to door 0" in user
        assert "<real>\nYou open the safe.\n</real>" in user
        verdict = "Yes" if "<prediction>\nThe safe is open.\n" in user else "no"
        return 200, say(
            f"<think>yes or no?</think> <verdict>no</verdict>, rather <verdict> {verdict} </verdict>"
        )

    with serving(FakeServer(answer)) as fake:
        rewards = judge(fake, ["The safe is open.", "It is shut.", None, "It is shut."])
    assert rewards == [1, 0, 0, 0]
    assert len(fake.requests) == 2
    assert {path for path, _, _ in fake.requests} == {"/v1/chat/completions"}
    assert all(body["temperature"] == 0 for _, body, _ in fake.requests)


def test_a_real_valued_judge() -> None:
    with serving(FakeServer(lambda *_: (200, say("<verdict>0.25</verdict>")))) as fake:
        assert judge(fake, ["a", None], "real") == [0.25, 0.0]


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("no tag", "binary"),
        ("<verdict>maybe</verdict>", "binary"),
        ("<verdict>0.5</verdict>", "binary"),
        ("<verdict>yes</verdict>", "real"),
        ("<verdict>1.5</verdict>", "real"),
        ("<verdict>nan</verdict>", "real"),
        ("<think>It seems <verdict>1</verdict>", "real"),
        (None, "real"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_no_reward_of_zero(
    text: str | None, scale: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = "yes" if scale == "binary" else "1"

    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        bad = "strange" in body["messages"][1]["content"]
        return 200, say(text if bad else f"<verdict>{good}</verdict>")

    with serving(FakeServer(answer)) as fake:
        assert judge(fake, ["strange", "plain", None], scale, retries=1) == [None, 1, 0]
        temperatures = [b["temperature"] for _, b, _ in fake.requests if "strange" in str(b)]
    assert temperatures[0] == 0 < temperatures[1]  # asking greedily again would bring the same
    assert "no verdict on 1 of 2 predictions" in caplog.text


def test_a_judge_that_fails_on_one_prediction_still_judges_the_others() -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        user = body["messages"][1]["content"]
        return (500 if "broken" in user else 400 if "long" in user else 200), say("<verdict>yes</verdict>")

    with serving(FakeServer(answer)) as fake:
        assert judge(fake, ["broken", "fine", "long"], retries=1) == [None, 1, None]
        assert len(fake.requests) == 4  # what the server refuses is not sent again


def test_requests_are_sent_at_once_up_to_a_limit() -> None:
    def answer(*_: Any) -> tuple[int, Any]:
        time.sleep(0.05)
        return 200, say("<verdict>yes</verdict>")

    with serving(FakeServer(answer)) as fake:
        assert judge(fake, [f"p{n}" for n in range(12)], concurrency=3) == [1] * 12
    assert 2 <= fake.most_at_once <= 3


@given(st.text(), st.sampled_from(["binary", "real"]))
def test_any_answer_is_a_verdict_or_refused(text: str, scale: Any) -> None:
    for said in (text, f"<verdict>{text}</verdict>"):
        with contextlib.suppress(ValueError):
            assert 0 <= read_verdict(say(said), scale) <= 1


@pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"choices": [{"message": {}}]}, "yes", 1])
def test_any_json_is_read_or_refused(body: Any) -> None:
    with pytest.raises(ValueError, match="no text in"):
        read_verdict(body, "binary")
    with pytest.raises(ValueError, match="no list of vectors"):
        read_embeddings(body, 1)
