"""Each setting of a server reaches its requests, and each request is what the docs of its endpoint ask for."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from rwml_lightning.rewards import EmbeddingReward, JudgeReward, Server, ServerError
from rwml_lightning.rewards.embedding_server import EmbeddingServer, read_embeddings
from rwml_lightning.rewards.judge import read_verdict
from rwml_lightning.rewards.server import NoAnswerError, RefusedError, Request, ServerClient
from rwml_lightning.schema import Score
from support.fake_server import FakeServer, embed_letters, say, serving
from support.worlds import make_transition


def ask(fake: FakeServer, path: str = "x", number: int = 1, key: str = "judge.server", **changes: Any) -> Any:
    """Answers to ``number`` requests that read the whole JSON."""
    server = Server(**{"model": "m", "base_url": fake.url, **changes})
    requests = [Request(lambda failures, n=n: {"n": n, "failures": failures}, lambda body: body) for n in range(number)]  # type: ignore[misc]  # fmt: skip
    return ServerClient(server, key).ask(path, requests)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept, in seconds."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return slept


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With which arguments HTTP clients were made."""
    made: list[dict[str, Any]] = []

    class Client(httpx.AsyncClient):
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)
            super().__init__(**arguments)

    monkeypatch.setattr(httpx, "AsyncClient", Client)
    return made


def test_the_defaults_are_those_of_a_server_on_this_machine() -> None:
    server = Server("m")
    assert (server.base_url, server.api_key_env) == ("http://127.0.0.1:8000/v1", None)
    assert (server.timeout_s, server.max_wait_s, server.retries, server.concurrency) == (60, 600, 3, 8)


@pytest.mark.parametrize(("timeout_s", "connect_s"), [(4.0, 2.0), (20.0, 10.0), (60.0, 10.0)])
def test_a_connection_takes_half_the_time_of_an_answer_and_no_more_than_ten_seconds(
    clients: list[dict[str, Any]], timeout_s: float, connect_s: float
) -> None:
    with serving(FakeServer(lambda *_: (200, {}))) as fake:
        assert ask(fake, timeout_s=timeout_s) == [{}]
    (arguments,) = clients
    assert arguments["timeout"] == httpx.Timeout(
        None, connect=connect_s
    )  # the answer's own limit is around it


def test_a_key_is_sent_as_bearer_and_without_one_there_is_no_header(
    clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "secret")
    with serving(FakeServer(lambda *_: (200, {}))) as fake:
        ask(fake)
        ask(fake, api_key_env="TEST_KEY")
        sent = [headers.get("Authorization") for _, _, headers in fake.requests]
    assert sent == [None, "Bearer secret"]
    assert [arguments["headers"] for arguments in clients] == [{}, {"Authorization": "Bearer secret"}]


def test_a_request_carries_model_body_and_what_is_extra_in_this_order() -> None:
    with serving(FakeServer(lambda number, body: (200, body["n"]))) as fake:
        answers = ask(fake, "a/b", 3, base_url=f"{fake.url}/", concurrency=1, extra_body={"n": 7, "k": 1})
    assert answers == [7, 7, 7]
    assert [path for path, _, _ in fake.requests] == ["/v1/a/b"] * 3
    assert [body for _, body, _ in fake.requests] == [{"model": "m", "n": 7, "failures": 0, "k": 1}] * 3


def test_answers_come_in_the_order_of_the_requests() -> None:
    with serving(FakeServer(lambda _, body: (200, body["n"]))) as fake:
        assert ask(fake, number=9, concurrency=4) == list(range(9))
        assert ServerClient(Server("m", fake.url)).ask("x", []) == []


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_nonsense_is_asked_for_again_as_often_as_retries_say(retries: int, pauses: list[float]) -> None:
    with serving(FakeServer(lambda *_: (200, b"{"))) as fake:
        (answer,) = ask(fake, retries=retries)
        failures = [body["failures"] for _, body, _ in fake.requests]
    assert isinstance(answer, NoAnswerError)
    assert f"{fake.url}/x gave no usable response in {retries + 1} attempts; last error: " in str(answer)
    assert failures == list(range(retries + 1))
    assert pauses == [0.5, 1, 2][:retries]


def test_pauses_double_up_to_half_a_minute(pauses: list[float]) -> None:
    with serving(FakeServer(lambda number, _: (503 if number < 8 else 200, {}))) as fake:
        assert ask(fake) == [{}]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's clock goes on by three seconds at each look."""
    now = iter(float(seconds) for seconds in range(3, 1000, 3))
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr("rwml_lightning.rewards.server.time", clock)


@pytest.mark.usefixtures("slow_clock")
def test_no_pause_is_longer_than_what_is_left_to_wait(pauses: list[float]) -> None:
    with (
        serving(FakeServer(lambda *_: (503, {}))) as fake,
        pytest.raises(ServerError, match=r"has not responded for 10 s \(judge\.server\.max_wait_s\)"),
    ):
        ask(fake, max_wait_s=10)
    # Down since 3; looked at again at 6, 9, 12 and 15: 7, 4, 1 and -2 seconds are left.
    assert pauses == [0.5, 1, 1]


@pytest.mark.usefixtures("slow_clock", "pauses")
def test_waiting_begins_anew_after_an_answer() -> None:
    """A server that answers nonsense is not down: only the time since then counts."""
    statuses = [503, 503, 500, 503, 503, 200]
    with serving(FakeServer(lambda number, _: (statuses[number], {}))) as fake:
        assert ask(fake, max_wait_s=7) == [{}]


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (400, RefusedError),
        (413, RefusedError),
        (422, RefusedError),
        (500, NoAnswerError),
        (501, NoAnswerError),
    ],
)
def test_what_a_status_means_for_one_request(status: int, what: type, pauses: list[float]) -> None:
    with serving(FakeServer(lambda *_: (status, {"error": "a  b\nc" + "x" * 300}))) as fake:
        (answer,) = ask(fake, retries=1)
    assert type(answer) is what
    said = str(answer)
    assert f"{status} " in said
    assert '{"error": "a b' in said  # white space is one space
    assert len(said[said.index("{") :]) == 200
    assert len(fake.requests) == (1 if what is RefusedError else 2)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_down_and_says_why(
    status: int, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(FakeServer(lambda number, _: (status if number < 2 else 200, {"why": "busy"}))) as fake,
        caplog.at_level(logging.WARNING),
    ):
        assert ask(fake, retries=0) == [{"why": "busy"}]
    messages = [record.getMessage() for record in caplog.records if "rewards.server" in record.name]
    assert len(messages) == 2  # that it is waited for, and that it is back
    assert f"{fake.url}/x does not respond ({status} " in messages[0]
    assert "busy" in messages[0]
    assert messages[1] == f"{fake.url}/x responds again"


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_an_address_that_is_wrong_names_the_settings_to_look_at(status: int) -> None:
    message = (
        rf"{status} .*Check judge\.server\.base_url, judge\.server\.model and judge\.server\.api_key_env"
    )
    with serving(FakeServer(lambda *_: (status, {}))) as fake, pytest.raises(ServerError, match=message):
        ask(fake)


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [("timeout_s", 0.001, 0.0009), ("max_wait_s", 0, -0.1), ("retries", 0, -1), ("concurrency", 1, 0)],
)
def test_limits_have_a_least_value_that_is_allowed(name: str, least: float, below: float) -> None:
    ServerClient(Server("m", **{name: least}))
    with pytest.raises(ValueError, match=rf"reward\.server\.{name} is {below}; it must be at least {least}"):
        ServerClient(Server("m", **{name: below}))


def test_the_judge_is_told_its_role_and_its_scale() -> None:
    with serving(FakeServer(lambda *_: (200, say("<verdict>1</verdict>")))) as fake:
        reward = JudgeReward(Server("m", fake.url), "real", max_tokens=77)
        scores = reward.score([make_transition(action="wave", next_state="A bow.")], ["A nod."])
    assert scores == [Score(1.0, 1.0, True)]
    ((_, body, _),) = fake.requests
    assert body.keys() == {"model", "messages", "max_tokens", "temperature"}
    assert body["max_tokens"] == 77
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"].startswith(
        "You compare a predicted next state of a text environment with the real one."
    )
    assert "X is a number from 0" in system["content"]
    assert user["content"] == "Action: wave\n<real>\nA bow.\n</real>\n<prediction>\nA nod.\n</prediction>"


def test_a_judge_says_yes_or_no_unless_asked_otherwise(pauses: list[float]) -> None:
    def answer(number: int, _: dict[str, Any]) -> tuple[int, Any]:
        return 200, say("<verdict>YES</verdict>" if number else "hm")

    with serving(FakeServer(answer)) as fake:
        reward = JudgeReward(Server("m", fake.url))
        assert reward.score([make_transition()], ["a"]) == [Score(1.0, 1.0, True)]
    first, second = (body for _, body, _ in fake.requests)
    assert "<verdict>yes</verdict>" in first["messages"][0]["content"]
    assert (first["max_tokens"], reward.success_similarity) == (1024, 0.5)
    assert (first["temperature"], second["temperature"]) == (0.0, 0.7)


def test_a_pair_is_action_reality_and_prediction() -> None:
    """Transitions that differ in one of them alone are judged apart."""
    with serving(FakeServer(lambda number, _: (200, say(f"<verdict>0.{number + 1}</verdict>")))) as fake:
        reward = JudgeReward(Server("m", fake.url, concurrency=1), "real")
        asked = [("a", "r", "p"), ("b", "r", "p"), ("a", "s", "p"), ("a", "r", "q"), ("a", "r", "p")]
        transitions = [make_transition(action=action, next_state=real) for action, real, _ in asked]
        scores = reward.score(transitions, [prediction for _, _, prediction in asked])
    assert [score and score.reward for score in scores] == [0.1, 0.2, 0.3, 0.4, 0.1]


@pytest.mark.parametrize(("said", "verdict"), [("0", 0.0), ("1", 1.0), ("0.5", 0.5)])
def test_a_verdict_may_be_at_either_end(said: str, verdict: float) -> None:
    assert read_verdict(say(f"<verdict>{said}</verdict>"), "real") == verdict


def test_what_a_verdict_is_not_is_shown_in_part() -> None:
    with pytest.raises(ValueError, match=r"^no <verdict> in 'x{80}'$"):
        read_verdict(say("y" + "x" * 80), "binary")
    with pytest.raises(ValueError, match=r"^the verdict is 'x{80}'$"):
        read_verdict(say(f"<verdict>{'x' * 90}</verdict>"), "binary")


def test_vectors_stand_by_their_index_or_by_their_place() -> None:
    plain = [{"embedding": [3.0, 4.0]}, {"embedding": [0, 2]}]
    expected = np.array([[0.6, 0.8], [0, 1]], dtype=np.float32)
    for rows in (plain, [{"index": 1, **plain[1]}, {"index": 0, **plain[0]}]):
        found = read_embeddings({"data": rows}, 2)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"index": "0", "embedding": [1.0]}], "no list of vectors in data"),
        (["x"], "no list of vectors in data"),
        ([{"index": 1, "embedding": [1.0]}], "1 vectors for 1 texts"),
        ([{"embedding": [1.0]}, {"embedding": [1.0]}], "2 vectors for 1 texts"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}], "2 vectors for 1 texts"),
        ([{"text": "a"}], "an embedding that is not a list of numbers"),
        ([{"embedding": [[1.0]]}], "an embedding that is not a list of numbers"),
        ([{"embedding": ["x"]}], "vectors of different lengths, or with entries that are not numbers"),
        ([{"embedding": [float("inf"), 1.0]}], "a vector of NaN, infinity or zeros"),
    ],
)
def test_what_is_no_vector_is_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_embeddings({"data": data}, 1)


def test_one_refused_text_costs_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        bad = any(len(text) > 90 for text in body["input"])
        return (413, {}) if bad else (200, embed_letters(body["input"]))

    with serving(FakeServer(answer)) as fake:
        embedder = EmbeddingServer(Server("m", fake.url, concurrency=1), 2)
        vectors = embedder.encode(["a", "b", "c", "a" * 100, "ab"])
        assert embedder.encode(["c"])[0] is not None
    assert [body["input"] for _, body, _ in fake.requests] == [
        ["a", "b"], ["c", "a" * 100], ["ab"], ["c"], ["a" * 100], ["c"],
    ]  # fmt: skip
    half = 0.5**0.5
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], None, [half, half, 0]]
    assert [v if v is None else pytest.approx(v.tolist()) for v in vectors] == expected
    assert caplog.records[-1].getMessage().endswith(f"; the text begins with {'a' * 80!r}")


def test_the_reward_gives_the_server_its_batch_size_and_its_prompt() -> None:
    with serving(FakeServer(lambda _, body: (200, embed_letters(body["input"])))) as fake:
        server = Server("m", fake.url, concurrency=1)
        EmbeddingReward(server=server, batch_size=2, prompt="a").embed(["b", "c", "ab"])
        with pytest.raises(RefusedError, match="the embedder gives no vector for 1 of 2 texts"):
            EmbeddingReward(server=Server("m", serving_refusals(fake))).embed(["b", "no"])
    assert [body["input"] for _, body, _ in fake.requests][:2] == [["ab", "ac"], ["aab"]]


def serving_refusals(fake: FakeServer) -> str:
    """The address of a server that from now on refuses "no"."""
    fake.answer = lambda _, body: (400, {}) if "no" in body["input"] else (200, embed_letters(body["input"]))
    return fake.url
