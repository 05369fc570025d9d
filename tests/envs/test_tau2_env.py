"""tau2-bench on its real engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_server import FakeServer, say, serving
from support.http import free_port
from support.vllm_server import vllm_server

pytest.importorskip("tau2", reason="the real engine")

from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Failure, Observation
from rwml_lightning.envs.tau2 import Tau2Env
from rwml_lightning.envs.tau2.extra import import_engine
from rwml_lightning.envs.tau2.messages import read_action
from rwml_lightning.models import resolve_model

DOMAINS = ("airline", "retail", "telecom")
UPDATE = '{"name": "update_task_status", "arguments": {"task_id": "task_1", "status": "completed"}}'


def tasks_of(env: Tau2Env) -> list[str]:
    return [task for tasks in env.tasks.values() for task in tasks]


def finish(env: Tau2Env, task: str) -> tuple[float, dict[str, Any]]:
    env.reset(seed=0, options={"task": task})
    reward, info = 0.0, {}
    for action in env.walkthrough():
        _, reward, _, _, info = env.step(action)
    return reward, info


@pytest.mark.heavy
def test_tasks_and_splits_are_the_benchmarks() -> None:
    env = Tau2Env(DOMAINS)
    assert {split: len(tasks) for split, tasks in env.tasks.items()} == {"train": 178, "test": 100}
    assert {name: len(Tau2Env(name, ["test"]).tasks["test"]) for name in DOMAINS} == {
        "airline": 20, "retail": 40, "telecom": 40,
    }  # fmt: skip
    assert len(Tau2Env("mock").tasks["train"]) == 9


@pytest.mark.parametrize(("domain", "solo"), [("airline", False), ("retail", False), ("telecom", False), ("telecom", True)])  # fmt: skip
def test_reference_solutions_earn_the_reward(domain: str, solo: bool) -> None:
    env = Tau2Env(domain, solo=solo, max_steps=200)
    for task in tasks_of(env)[::12]:
        reward, info = finish(env, task)
        assert reward == 1.0, task
        assert info["won"]
        assert info["ended"] == ("agent_stop" if solo else "user_stop")
        assert (info["kind"], info["next_state"], info["knowable"]) == ("end", "", False) if solo else True


@pytest.mark.heavy
@pytest.mark.parametrize(("domain", "solo"), [("telecom", False), ("telecom", True), ("retail", False)])
def test_the_reward_is_that_of_the_distributions_evaluator(domain: str, solo: bool) -> None:
    """Also of broken solutions; benchmarks/tau2_engine.py does this with all domains and more episodes."""
    stock = import_engine("tau2.evaluator.evaluator")
    simulation = import_engine("tau2.data_model.simulation")
    env = Tau2Env(domain, solo=solo, max_steps=200)
    rewards = set()
    for number, task in enumerate(tasks_of(env)[:6]):
        env.reset(seed=0, options={"task": task})
        *actions, last = env.walkthrough()
        for action in (*actions[: len(actions) - number % 2], last):
            _, reward, *_ = env.step(action)
        conversation = env._conversation
        assert conversation is not None
        run = simulation.SimulationRun(
            id="", task_id=task, start_time="", end_time="", duration=0.0, termination_reason=conversation.ended,
            messages=conversation.orchestrator.trajectory,
        )  # fmt: skip
        kind = stock.EvaluationType.ALL
        assert reward == stock.evaluate_simulation(run, conversation.task, kind, solo, domain).reward, task
        rewards.add(reward)
    assert rewards == {0.0, 1.0}


def test_a_conversation_step_by_step() -> None:
    env = Tau2Env("mock")
    messages, info = env.reset(seed=3, options={"task": "mock/create_task_1"})
    assert [one["role"] for one in messages] == [
        "assistant",
        "user",
    ]  # the benchmark's agent says hello first
    assert "user_1" in messages[1]["content"]
    assert "Mock" in info["instructions"] or "task" in info["instructions"]
    assert {"get_users", "create_task"} <= {tool["function"]["name"] for tool in info["tools"]}
    assert (info["task"], info["game"], info["task_type"], info["won"]) == (
        "",
        "mock/create_task_1",
        "mock",
        False,
    )
    messages, reward, terminated, truncated, info = env.step(
        '<tool_call>{"name": "get_users", "arguments": {}}</tool_call>'
    )
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert [one["role"] for one in messages] == ["tool"]
    assert info["action"] == '<tool_call>\n{"name": "get_users", "arguments": {}}\n</tool_call>'
    assert (info["kind"], info["valid"], info["knowable"]) == ("tool", True, True)
    assert json.loads(info["next_state"])["type"] == "array"  # a schema of what is text in the message
    assert json.loads(messages[0]["content"])[0]["user_id"] == "user_1"
    messages, *_, info = env.step("Which user do you mean?")
    assert (
        (info["kind"], info["next_state"])
        == ("user", messages[0]["content"])
        == ("user", "Yes, please go ahead.")
    )
    assert info["measures"] == {
        "hops": 5, "tool_calls": 1, "invalid_tool_calls": 0.0, "user_calls": 2, "user_tokens": 0, "do_nothing": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("<tool_call>get_users</tool_call>", "the call cannot be read: neither JSON nor a call"),
        (
            '{"name": "get_users", "arguments": {}',
            "the call cannot be read: no JSON: Expecting ',' delimiter",
        ),
        (
            '<tool_call>{"arguments": {}}</tool_call>',
            "the call cannot be read: needs a name and an object of arguments",
        ),
        (
            '{"name": "create_task", "arguments": {"user_id": "user_1"}}',
            "missing 1 required positional argument: 'title'",
        ),
        ('{"name": "get_users", "arguments": {"colour": 3}}', "unexpected keyword argument 'colour'"),
        ('{"name": "create_task", "arguments": {"user_id": 7, "title": "t"}}', "User 7 not found"),
        ('{"name": "get_usres", "arguments": {}}', "get_usres"),
        ('{"name": "create_task", "arguments": {"user": "user_1"}}', "user"),
        ('{"name": "update_task_status", "arguments": {"task_id": "nine", "status": "completed"}}', "nine"),
    ],
)
def test_a_call_that_fails_is_invalid_and_the_agent_is_told(action: str, said: str) -> None:
    env = Tau2Env("mock", max_errors=2)
    env.reset(seed=0, options={"task": "mock/create_task_1"})
    messages, reward, terminated, _, info = env.step(action)
    assert not info["valid"]
    assert messages[0]["content"].startswith("Error")
    assert said in messages[0]["content"]
    assert info["measures"]["invalid_tool_calls"] == 1.0
    assert (reward, terminated) == (0.0, False)
    *_, terminated, truncated, info = env.step(action)
    assert (terminated, truncated, info["ended"]) == (True, False, "too_many_errors")


def test_a_list_of_calls_is_made_in_order_and_each_is_answered() -> None:
    env = Tau2Env("mock")
    env.reset(seed=0, options={"task": "mock/create_task_1"})
    calls = '[{"name": "get_users", "arguments": {}}, {"name": "get_usres"}, {"arguments": {}}]'
    messages, *_, info = env.step(f"<tool_call>{calls}</tool_call>")
    assert [one["role"] for one in messages] == ["tool"] * 3
    assert json.loads(messages[0]["content"])[0]["user_id"] == "user_1"
    assert messages[1]["content"] == "Error: Tool 'get_usres' not found."
    assert messages[2]["content"] == "Error: the call cannot be read: needs a name and an object of arguments"
    assert (info["kind"], info["valid"]) == ("tool", False)
    assert (info["measures"]["tool_calls"], info["measures"]["invalid_tool_calls"]) == (3, 2 / 3)
    assert "needs a name and an object of arguments" in info["next_state"]
    first = env.step(calls)  # the same without tags
    assert [one["content"] for one in first[0]] == [one["content"] for one in messages]


@pytest.mark.parametrize(("solo", "action"), [(False, ""), (False, "  \n"), (True, "Hello?")])
def test_an_agent_that_breaks_the_rules_of_conversation_has_lost(solo: bool, action: str) -> None:
    env = Tau2Env("mock", solo=solo)
    env.reset(seed=0, options={"task": tasks_of(env)[0]})
    messages, reward, terminated, truncated, info = env.step(action)
    assert (messages, reward, terminated, truncated) == ((), 0.0, True, False)
    assert (info["valid"], info["ended"]) == (False, "agent_error")


def test_an_episode_that_is_cut_off_is_truncated_and_unpaid() -> None:
    env = Tau2Env("telecom", solo=True, max_steps=3)
    env.reset(seed=0, options={"task": tasks_of(env)[0]})
    for number in range(2):
        _, reward, terminated, truncated, info = env.step("check_sim_status()")
        assert (reward, terminated, truncated) == (0.0, False, number == 1)
    assert info["ended"] == "max_steps"
    with pytest.raises(AssertionError, match="the episode is over"):
        env.step("check_sim_status()")


def test_doing_nothing_is_measured() -> None:
    env = Tau2Env("airline")
    env.reset(seed=0, options={"task": tasks_of(env)[0]})
    for action in ("Goodbye!",):
        _, reward, _, _, info = env.step(action)
    assert reward == info["measures"]["do_nothing"]


def test_a_reply_of_100_kb_is_shortened_where_it_is_to_be_predicted() -> None:
    env = Tau2Env("mock", max_reply_chars=100)
    env.reset(seed=0, options={"task": "mock/create_task_1"})
    call = {"name": "update_task_status", "arguments": {"task_id": "x" * 100_000, "status": "completed"}}
    messages, *_, info = env.step(json.dumps(call))
    assert len(messages[0]["content"]) > 100_000
    assert len(info["next_state"]) < 150
    assert "characters ...]" in info["next_state"]


def test_episodes_do_not_share_what_they_change() -> None:
    first, second = Tau2Env("mock"), Tau2Env("mock")
    for env in (first, second):
        env.reset(seed=0, options={"task": "mock/update_task_1"})
    assert "completed" in first.step(UPDATE)[0][0]["content"]
    look = '{"name": "get_users", "arguments": {}}'
    assert first._conversation is not None
    assert second._conversation is not None
    assert first._conversation.environment.get_db_hash() != second._conversation.environment.get_db_hash()
    second.step(look)
    first.reset(seed=0, options={"task": "mock/update_task_1"})
    assert first._conversation.environment.get_db_hash() == second._conversation.environment.get_db_hash()


def test_what_the_user_does_in_private_and_wants_is_not_seen() -> None:
    env = Tau2Env("telecom")
    task = tasks_of(env)[0]
    messages, info = env.reset(seed=0, options={"task": task})
    wanted = env._task.user_scenario.instructions
    assert wanted.task_instructions.strip() not in info["background"]
    assert wanted.reason_for_call.strip() not in info["background"]
    assert wanted.known_info.strip() in info["background"]
    assert not {"walkthrough", "evaluation_criteria", "reference"} & set(info)
    messages, *_, info = env.step("Please do this on your device:\ncheck_sim_status()")
    assert [one["role"] for one in messages] == ["user"]
    assert messages[0]["content"].startswith("Result: ")
    assert info["measures"]["tool_calls"] == 0  # the call was the user's
    assert info["measures"]["user_calls"] == 3


def test_seeds_draw_tasks() -> None:
    env = Tau2Env(("mock", "telecom"))
    drawn = [env.reset(seed=seed)[1]["game"] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "retial"}, r"domain: tau2-bench has no 'retial' here; nearest: 'retail'"),
        (
            {"domain": "airline", "splits": ["trian"]},
            r"splits: tau2-bench has no 'trian' here; nearest: 'train'",
        ),
        (
            {"domain": "airline", "solo": True},
            r"solo: 'airline' has no solo mode; domains with one: mock, telecom",
        ),
        ({"domain": "mock", "calls": "xml"}, r"calls: 'xml' is neither 'json' nor 'python'"),
        ({"domain": "mock", "max_steps": 0}, r"max_steps: 0 is not at least 1"),
        ({"domain": "mock", "user": "bob"}, r"user: 'bob' is neither 'scripted' nor a mapping"),
        ({"domain": "mock", "user": {"modle": "x"}}, r"user: got an unexpected keyword argument 'modle'"),
        (
            {"domain": "mock", "user": {"model": "x", "timeout_s": 0}},
            r"user: timeout_s and max_tokens must be above 0",
        ),
        (
            {"domain": "mock", "user": {"model": "x", "api_key_env": "NO_SUCH_KEY"}},
            r"user.api_key_env names NO_SUCH_KEY, which is not set",
        ),
        (
            {"domain": "mock", "user": {"model": "x", "api_key_env": "sk-1"}},
            r"^user.api_key_env must be the name",
        ),
        (
            {"domain": "mock", "user": {"model": "x", "base_url": "http://a/v1?key=1"}},
            r"^user.base_url must look",
        ),
        (
            {"domain": "mock", "user": {"model": "x", "base_url": "http://me:1@a/v1"}},
            r"^user.base_url must look",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tau2Env(**settings)


def test_an_unknown_task_is_named() -> None:
    env = Tau2Env("mock")
    with pytest.raises(
        ValueError, match=r"task: tau2-bench has no 'mock/create_task_9' here; nearest: 'mock/create_task_1'"
    ):
        env.reset(options={"task": "mock/create_task_9"})


def served(url: str, **changes: Any) -> dict[str, Any]:
    return {"model": "someone", "base_url": url, "timeout_s": 5.0, "retries": 0, **changes}


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(serving(FakeServer(answer)))


def answer(text: str | None) -> dict[str, Any]:
    body = say(text)
    body["choices"][0] |= {"index": 0, "finish_reason": "stop"}
    return body | {
        "id": "1", "object": "chat.completion", "created": 0, "model": "someone",
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }  # fmt: skip


def test_a_served_user_is_asked_with_the_episodes_seed_and_counted(serve: Callable[..., FakeServer]) -> None:
    texts = ["My name is Ann.", "Yes.", "###STOP###"]
    fake = serve(lambda number, body: (200, answer(texts[number % 3])))
    env = Tau2Env("mock", user=served(fake.url, temperature=0.5))
    for _ in range(2):
        messages, _ = env.reset(seed=5, options={"task": "mock/create_task_1"})
        assert messages[-1] == {"role": "user", "content": "My name is Ann."}
        messages, *_ = env.step("Shall I?")
        assert messages[0]["content"] == "Yes."
        messages, _, terminated, _, info = env.step("Done.")
        assert (terminated, info["ended"], info["kind"]) == (True, "user_stop", "user")
        assert (info["measures"]["user_calls"], info["measures"]["user_tokens"]) == (3, 39)
    path, body, _ = fake.requests[0]
    assert path.endswith("/chat/completions")
    assert (body["model"], body["temperature"]) == ("someone", 0.5)
    assert len({request["seed"] for _, request, _ in fake.requests}) == 1
    env.reset(seed=6, options={"task": "mock/create_task_1"})
    assert fake.requests[-1][1]["seed"] != body["seed"]


def calling(arguments: str) -> dict[str, Any]:
    body = answer(None)
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
    body["choices"][0]["message"]["tool_calls"] = [call]
    return body


NONSENSE = [
    (200, answer("")),
    (200, answer(None)),
    (200, b"nonsense"),
    (200, {"choices": []}),
    (200, answer("<think>My secret is 42, so")),
    (200, calling("{")),
    (200, calling("[]")),
    (500, {}),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("status", "content"), NONSENSE)
def test_a_user_that_answers_nonsense_is_asked_again_and_then_a_failure_of_its_own(
    serve: Callable[..., FakeServer], status: int, content: Any
) -> None:
    fake = serve(lambda number, body: (status, content))
    env = Tau2Env("mock", user=served(fake.url, retries=1))
    with pytest.raises(
        RuntimeError, match=r"user model 'someone' at http://127\.0\.0\.1:\d+/v1 gave no answer"
    ):
        env.reset(seed=0, options={"task": "mock/create_task_1"})
    assert len(fake.requests) == 2
    first, second = (body["seed"] for _, body, _ in fake.requests)
    assert first != second


@pytest.mark.heavy
def test_a_user_that_recovers_is_heard_without_its_thinking(serve: Callable[..., FakeServer]) -> None:
    answers = [(503, {}), (200, answer("<think>My secret is 42.</think>\n\nHello."))]
    fake = serve(lambda number, body: answers[min(number, 1)])
    body = {"chat_template_kwargs": {"enable_thinking": False}}
    env = Tau2Env("mock", user=served(fake.url, model="Some/Model-1B", retries=1, extra_body=body))
    messages, info = env.reset(seed=0, options={"task": "mock/create_task_1"})
    assert messages[-1] == {"role": "user", "content": "Hello."}
    assert info["measures"]["user_calls"] == 2
    _, request, _ = fake.requests[1]
    assert request["model"] == "Some/Model-1B"
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    messages, *_ = env.step("Hello!")
    assert "secret" not in str(fake.requests[-1][1]["messages"])
    assert fake.requests[-1][1]["seed"] == fake.requests[0][1]["seed"]


@pytest.mark.parametrize("action", ["###STOP###", "done()", '{"name": "done", "arguments": {}}'])
def test_with_a_user_only_the_user_ends_the_conversation(action: str) -> None:
    env = Tau2Env("airline")
    env.reset(options={"task": "airline/1"})
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0, False, False)
    assert info["valid"] == (action == "###STOP###")


@pytest.mark.heavy
def test_a_dead_user_is_reported_and_never_scored(serve: Callable[..., FakeServer]) -> None:
    down = f"http://127.0.0.1:{free_port()}/v1"
    fake = serve(lambda number, body: (200, answer("Hello.")) if number < 1 else (500, {}))
    for url, survives in ((down, False), (fake.url, True)):
        spec = EnvironmentSpec("rwml/Tau2-v0", {"domain": "mock", "user": served(url)})
        with EnvironmentPool(spec, num_workers=1, step_timeout_s=60) as pool:
            begun = pool.reset_many([(0, 1, "mock/create_task_1")])[0]
            if survives:
                assert isinstance(begun, Observation)
                begun = pool.step_many({0: "Hello?"})[0]
            assert isinstance(begun, Failure)
            assert begun.reason == "raised"
            assert f"user model 'someone' at {url} gave no answer" in begun.error


@pytest.mark.heavy
def test_a_key_that_the_users_server_repeats_is_shown_to_nobody(
    serve: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USER_KEY", "sk-very-secret")
    wrong = {"error": {"message": "Incorrect API key provided: sk-very-secret", "code": "invalid_api_key"}}
    fake = serve(lambda number, body: (401, wrong))
    spec = EnvironmentSpec(
        "rwml/Tau2-v0", {"domain": "mock", "user": served(fake.url, api_key_env="USER_KEY")}
    )
    with EnvironmentPool(spec, num_workers=1, step_timeout_s=60) as pool:
        begun = pool.reset_many([(0, 1, "mock/create_task_1")])[0]
    sent = {name.lower(): value for name, value in fake.requests[0][2].items()}
    assert sent["authorization"] == "Bearer sk-very-secret"
    assert isinstance(begun, Failure)
    assert "Incorrect API key provided: ***" in begun.error
    assert "sk-very-secret" not in begun.error
    assert "sk-very-secret" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_conversation_with_a_real_server(tmp_path: Path) -> None:
    """A model of 135M on vLLM plays the user; what it says is its own affair, that it is heard is ours."""
    model = resolve_model("package:smollm2-135m-instruct")
    with vllm_server(model, "smol", tmp_path / "log", "--max-model-len", "4096") as url:
        env = Tau2Env("mock", user=served(url, model="smol", timeout_s=60.0, max_tokens=24))
        messages, _ = env.reset(seed=0, options={"task": "mock/create_task_1"})
        assert messages[-1]["role"] == "user"
        assert messages[-1]["content"].strip()
        turns = 0
        for action in ('{"name": "get_users", "arguments": {}}', "What can I do for you?", "Anything else?"):
            messages, _, terminated, _, info = env.step(action)
            assert messages[-1]["content"].strip()
            turns += 1
            if terminated:
                break
        assert read_action(info["action"])
        assert info["measures"]["user_calls"] == turns
        assert info["measures"]["user_tokens"] > 100


def test_half_a_character_of_a_served_user_is_replaced(serve: Callable[..., FakeServer]) -> None:
    """JSON can hold what UTF-8 cannot."""
    fake = serve(lambda number, body: (200, answer(f"Hello {number} \ud800.")))
    env = Tau2Env("mock", user=served(fake.url, retries=0))
    messages, _ = env.reset(seed=0, options={"task": "mock/create_task_1"})
    assert messages[-1] == {"role": "user", "content": "Hello 0 \ufffd."}
    messages, *_ = env.step("Hello!")
    assert messages[-1] == {"role": "user", "content": "Hello 1 \ufffd."}
