"""No key or password in a config, and so none in a run folder, a run store or a logger."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwml_lightning.cli import main
from rwml_lightning.credentials import check_config, check_server_url, read_key
from support.runs import write_config

SECRET = "sk-very-secret-0123456789"
CONFIGS = sorted(Path(__file__).parents[1].glob("configs/**/*.yaml"))
HOLDING: dict[str, Any] = {
    "data.environment.kwargs.api_key": SECRET,
    "data.environment.kwargs.user.openai-api-key": SECRET,
    "data.environment.kwargs.llm_args.0.apiKey": SECRET,
    "data.environment.kwargs.password": SECRET,
    "data.environment.kwargs.hf_token": SECRET,
    "data.predictions.reward.init_args.server.extra_body.headers.Authorization": SECRET,
    "data.predictions.reward.init_args.server.extra_body.headers.X-API-Key": SECRET,
    "data.predictions.reward.init_args.server.extra_body.headers.other": f"Bearer {SECRET}",
    "data.predictions.reward.init_args.server.base_url": f"http://127.0.0.1:1/v1?api_key={SECRET}",
    "data.episodes.demonstrations.reflection.server.base_url": f"http://me:{SECRET}@127.0.0.1:1/v1",
    "data.predictions.evaluator.init_args.server.base_url": f"https://host/v1#{SECRET}",
    "data.environment.kwargs.user.base_url": f"https://{SECRET}@host/v1",
    "data.environment.kwargs.options": f"--database postgres://me:{SECRET}@host/db",
    "ckpt_path": f"https://host/last.ckpt?sig={SECRET}",
    "trainer.logger.0.init_args.settings.api_key": SECRET,
}


def nested(path: str, value: Any) -> Any:
    """``{a: {b: value}}`` for ``a.b``; a number stands for a place in a list."""
    name, _, rest = path.partition(".")
    inner = nested(rest, value) if rest else value
    return [inner] if name.isdigit() else {name: inner}


@pytest.mark.parametrize("path", HOLDING)
def test_a_secret_is_refused_by_the_name_of_its_key(path: str) -> None:
    with pytest.raises(ValueError, match=r"looks like a secret|is a URL with a user") as refused:
        check_config(nested(path, HOLDING[path]))
    message = str(refused.value)
    assert message.startswith(f"{path} ")
    assert SECRET not in message
    assert "\n" not in message


def test_namespaces_of_a_parser_are_looked_through() -> None:
    with pytest.raises(ValueError, match=r"^data\.rewards\.a\.token looks"):
        check_config(Namespace(data=Namespace(rewards={"a": Namespace(token=SECRET)})))


@pytest.mark.parametrize(
    "path",
    [
        "data.predictions.reward.init_args.server.api_key_env",
        "model.init_args.max_tokens",
        "data.environment.kwargs.eos_token",
        "data.episodes.prompt.system",
        "run.name",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        "JUDGE_KEY",
        "a # b?",
        "http://127.0.0.1:8000/v1",
        "See https://host/page?x=1 for the rules.",
        "Basic rules",
        "a@b",
    ],
)
def test_other_texts_pass(path: str, value: str) -> None:
    check_config(nested(path, value))


@pytest.mark.parametrize("value", [None, "", True, 3, []])
def test_an_empty_key_is_none(value: Any) -> None:
    check_config({"api_key": value})


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_hold_none(file: Path) -> None:
    check_config(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://judge.example", "http://[::1]:8000/v1"])
def test_addresses_of_servers(url: str) -> None:
    check_server_url(url, "server.base_url")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://host/v1 ",
        "http://host/v1?",
        "http://host/#",
        "http://u@h",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"^server\.base_url must look like http://127\.0\.0\.1:8000/v1"
    ) as refused:
        check_server_url(url, "server.base_url")
    assert not url or url not in str(refused.value)


def test_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    assert read_key("JUDGE_KEY", "server.api_key_env") == SECRET
    assert read_key(None, "server.api_key_env") is None
    for strange in (f"{SECRET}\n", f"{SECRET} ", f"{SECRET}é"):
        monkeypatch.setenv("JUDGE_KEY", strange)
        with pytest.raises(
            ValueError, match=r"^server\.api_key_env names JUDGE_KEY, which holds white"
        ) as refused:
            read_key("JUDGE_KEY", "server.api_key_env")
        assert SECRET not in str(refused.value)


COMMANDS = {
    "fit": ["--data.environment", f"{{id: some.Env, kwargs: {{api_key: {SECRET}}}}}"],
    "validate": ["--ckpt_path", f"https://host/last.ckpt?sig={SECRET}"],
    "collect": ["--data.environment", f"{{id: some.Env, kwargs: {{user: {{base_url: 'http://h/v1?k={SECRET}'}}}}}}"],
    "audit": ["--data.predictions.reward", "rwml_lightning.rewards.EmbeddingReward", "--data.predictions.reward.server", f"{{model: m, base_url: 'http://h?k={SECRET}'}}"],
    "evaluate": ["--models", "a", "--data.predictions.evaluator", "rwml_lightning.rewards.JudgeReward",
                 "--data.predictions.evaluator.server", f"{{model: m, extra_body: {{api_key: {SECRET}}}}}"],
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_secret_before_it_writes_anything(
    command: str,
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path, tiny_model)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", str(file), *COMMANDS[command]])
    assert stopped.value.code == 2
    shown = "".join(capfd.readouterr())
    assert "error: " in shown
    assert "may hold a key" in shown or "looks like a secret" in shown
    assert SECRET not in shown
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert not (tmp_path / "runs").exists()
