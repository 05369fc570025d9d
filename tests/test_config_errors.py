"""A mistake in a config ends in one line that names the key, exit code 2, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rwml_lightning.cli import main

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model may be asked for, and no run folder made, before the mistake is found."""

    def loaded(name: object) -> None:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr("rwml_lightning.preflight.resolve_model", loaded)
    monkeypatch.chdir(tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--model.init_args.optimizer.lerning_rate 1",
            "model.init_args.optimizer.lerning_rate is not a known key; did you mean model.init_args.optimizer.learning_rate?",
        ),
        (
            "--model.init_args.optimizer.learning_rate abc",
            "model.init_args.optimizer.learning_rate is 'abc', but takes float",
        ),
        (
            "--data.prompt_per_step 3",
            "data.prompt_per_step is not a known key; did you mean data.predictions.prompts_per_step?",
        ),
        ("--trainer.max_stepz 4", "trainer.max_stepz is not a known key; did you mean trainer.max_steps?"),
        (
            "--model Foo",
            "model is 'Foo', but takes a class path such as rwml_lightning.modules.WorldModelGRPO",
        ),
        (
            "--data.predictions.reward.init_args.tau_q 1",
            "data.predictions.reward.init_args.tau_q is not a known key; did you mean tau_d?",
        ),
        ("--data.predictions.group_size x", "data.predictions.group_size is 'x', but takes int"),
        (
            "--data.predictions.prompt.history_turn 1",
            "data.predictions.prompt.history_turn is not a known key; did you mean data.predictions.prompt.history_turns?",
        ),
        (
            "--data.predictions.collection.prompt.sistem x",
            "data.predictions.collection.prompt.sistem is not a known key; did you mean data.predictions.collection.prompt.system?",
        ),
        ("--model.init_args.lora.rank x", "model.init_args.lora.rank is 'x', but takes int"),
        (
            "--model.init_args.grpo.kl_estimator k4",
            "model.init_args.grpo.kl_estimator is 'k4', but takes one of 'k1', 'k2', 'k3'",
        ),
    ],
)
def test_a_wrong_option(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(["fit", "--config", str(QUICKSTART), *option.split()], capsys) == message


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.prompt_per_step", 3, "data.prompt_per_step is not a known key; did you mean data.predictions.prompts_per_step?"),
        ("data.predictions.reward.class_path", "rwml_lightning.rewards.EmbedingReward",
         "data.predictions.reward: rwml_lightning.rewards has no EmbedingReward; did you mean EmbeddingReward?"),
        ("trainer.max_step", 3, "trainer.max_step is not a known key; did you mean trainer.max_steps?"),
        ("run.nam", "x", "run.nam is not a known key; did you mean run.name?"),
        ("data.predictions.prompt.history_turn", 1, "data.predictions.prompt.history_turn is not a known key; did you mean data.predictions.prompt.history_turns?"),
        ("data.predictions.validation.temperature", "hot", "data.predictions.validation.temperature is 'hot', but takes float"),
        ("data.predictions.collection.behaviour", "expert", "data.predictions.collection.behaviour is 'expert', but takes one of 'model', 'random', 'branches'"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_a_file(
    key: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(["fit", "--config", str(write(tmp_path, {key: value}))], capsys) == message


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("data.transitions", "t.parquet", "data.predictions.transitions"),
        ("data.reward.class_path", "rwml_lightning.rewards.RougeReward", "data.predictions.reward"),
        ("data.collection.behaviour", "random", "data.predictions.collection.behaviour"),
        ("data.group_size", 4, "data.episodes.group_size or data.predictions.group_size"),
        ("data.play.group_size", 4, "data.episodes.group_size"),
        ("data.games.folder", "games", "data.environment.games.folder"),
        ("data.demonstrations.path", "d.parquet", "data.episodes.demonstrations.path"),
    ],
)
def test_a_key_of_before_is_refused_by_the_one_that_took_its_place(
    key: str, value: Any, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"{key} is not a known key; did you mean {meant}?"
    assert error_of(["fit", "--config", str(write(tmp_path, {key: value}))], capsys) == message
    assert error_of(["fit", "--config", str(QUICKSTART), f"--{key}", str(value)], capsys) == message


def write(folder: Path, changes: dict[str, Any]) -> Path:
    config = yaml.safe_load(QUICKSTART.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        target = config
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is None:
            del target[last]
        else:
            target[last] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data.predictions.transitions": None}, ["data.predictions.transitions", "missing"]),
        ({"model.init_args.model": None}, ["model.init_args.model", "missing"]),
    ],
)
def test_a_missing_key(
    changes: dict[str, Any], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["fit", "--config", str(write(tmp_path, changes))], capsys)
    assert all(part in message for part in parts), message


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["fit", "--config", "nofile.yaml"], capsys)
    assert "config" in message
    assert "nofile.yaml" in message


@pytest.mark.heavy
def test_a_file_that_is_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("model: [1,\n")
    message = error_of(["fit", "--config", str(tmp_path / "broken.yaml")], capsys)
    assert message.startswith("Problems parsing config")
    assert "line 2, column 1" in message


def test_the_command_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(["--config", str(QUICKSTART), "fit"], capsys)
    assert message == "the command comes first: python -m rwml_lightning fit --config ..."


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fitt" in error_of(["fitt", "--config", str(QUICKSTART)], capsys)
