"""The policy stage from its config: imitation, GRPO, validation, test, and what is left of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwml_lightning.cli import main
from rwml_lightning.data.demonstrations import read_labels
from rwml_lightning.models import load_tokenizer
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.trace import GroupQuery, TraceReader
from support.command_line import error_of
from support.runs import make_config

TASKS = {"train": ["a", "b", "c", "d"], "validation": ["v", "w"]}
PROMPT = {"layout": "window", "history_turns": 0, "system": "", "user": "{observation}", "answer": "{action}"}


def write_config(folder: Path, model: Path, module: str = "PolicyGRPO", **changes: Any) -> Path:
    rooms = {
        "id": "support.environments.RoomsEnv",
        "kwargs": {"games": TASKS, "folder": str(folder), "length": 3},
    }
    episodes = {
        "prompt": PROMPT, "sampling": {"max_tokens": 6}, "games_per_step": 4, "group_size": 4, "max_turns": 4,
        "num_passes": 3, "num_workers": 1, "demonstrations": {"path": str(folder / "expert.parquet")},
        "validation": {"episodes_per_game": 2, "max_turns": 4, "temperature": 1.0},
    }  # fmt: skip
    data = {"environment": rooms, "predictions": None, "episodes": episodes}
    model_section = {
        "class_path": f"rwml_lightning.modules.{module}",
        "init_args": {"model": str(model), "optimizer": {"learning_rate": 1e-3}},
    }
    return make_config(folder, model, **{"data": data, "model": model_section, **changes})


def add_predictions(folder: Path, **changes: Any) -> list[str]:
    """Arguments that give such a run predictions too."""
    predictions = {
        "transitions": str(folder / "t.parquet"),
        "reward": {"class_path": "support.rewards.LetterReward"},
        "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
        "sampling": {"max_tokens": 20},
        "prompts_per_step": 4,
        "validation": {"num_transitions": 3},
    }
    return ["--data.predictions", json.dumps(predictions | changes)]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.slow
def test_imitation_then_grpo_then_test(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm_up = {"num_transitions": 8, "batch_size": 4, "num_passes": 40, "learning_rate": 1e-2}
    config = write_config(tmp_path, tiny_model, warm_up=warm_up)
    main(["fit", "--config", str(config)])
    printed = capsys.readouterr()
    for words in ("Evaluation games", "success", "before", "end", "pass@2"):
        assert words in printed.out
    assert "8 turns of 4 solved episodes from 4 games" in printed.err
    run = tmp_path / "runs" / "r"
    with TraceReader(run / "trace.db") as reader:
        assert [stage.stage for stage in reader.stages()] == ["policy_sft", "policy_grpo"]
        found = reader.episodes_by_id(reader.episode_ids("policy_grpo"))
        assert {(one.step, one.source) for one in found} == {
            (0, "held_out"), (1, "train"), (2, "train"), (2, "held_out"),
        }  # fmt: skip
        assert sum(one.source == "train" for one in found) == 2 * 4 * 4
        names = reader.metric_names("policy_grpo")
        results = [e.result["results"][0]["values"] for e in reader.evaluations() if e.name == "episodes"]
    assert {"policy/success", "policy/return", "policy/invalid_actions", "time/env", "time/generate"} <= set(
        names
    )
    assert results[-1]["success"] > results[0]["success"]  # untaught it writes no action
    assert (run / "evaluations" / "policy_grpo-2.json").exists()
    assert (run / "export" / "model.safetensors").exists()

    capsys.readouterr()
    exported = ["--model.init_args.init_from", str(run / "export")]
    main(["test", "--config", str(config), *exported])
    assert "Evaluation games" in capsys.readouterr().out
    main(["validate", "--config", str(config), *exported])
    assert "Evaluation games" in capsys.readouterr().out
    checkpoint = next((run / "checkpoints").glob("*.ckpt"), None)
    assert checkpoint is None  # the run is shorter than checkpoint_every


@pytest.mark.slow
def test_own_successes_are_imitated(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_model, "PolicySFT")
    main(
        [
            "fit",
            "--config",
            str(config),
            "--trainer.max_steps",
            "120",
            "--data.episodes.num_passes",
            "60",
            "--model.init_args.optimizer.learning_rate",
            "1e-2",
        ]
    )
    taught = tmp_path / "runs" / "r" / "export"
    capsys.readouterr()
    demonstrations = {"path": str(tmp_path / "own.parquet"), "source": "policy", "episodes_per_game": 4}
    own = write_config(tmp_path, taught, "PolicySFT")
    arguments = ["fit", "--config", str(own), "--run.name", "rft"]
    main([*arguments, "--data.episodes.demonstrations", str(demonstrations)])
    printed = capsys.readouterr()
    assert "solved episodes from 4 games" in printed.err
    assert "Evaluation games" in printed.out


@pytest.mark.slow
def test_what_the_policy_predicts_is_measured_and_kept_beside_its_episodes(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_model)
    predictions = add_predictions(
        tmp_path,
        collection={"behaviour": "random", "max_turns": 3, "num_workers": 1},
        validation={"num_transitions": 3, "group_size": 2},
    )
    labels = '{"num_per_step": 4, "prompt": {"history_turns": 0, "system": "", "user": "{action}"}}'
    main(
        [
            "fit", "--config", str(config), *predictions, "--model.init_args.world_model_weight", "0.5",
            "--data.episodes.next_state_labels", labels,
        ]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "Evaluation games" in printed
    assert "Held-out predictions" in printed
    run = tmp_path / "runs" / "r"
    with TraceReader(run / "trace.db") as reader:
        assert {(e.step, e.name) for e in reader.evaluations("policy_grpo")} == {
            (step, name) for step in (0, 2) for name in ("episodes", "held_out")
        }
        query = GroupQuery(stage="policy_grpo", source="held_out")
        assert [len(group.rewards) for group in reader.groups(query)] == [2] * 6
        curves = reader.metrics("policy_grpo")
    assert [step for step, _ in curves["val/world_model/similarity"]] == [0, 2]
    assert [step for step, _ in curves["val/success"]] == [0, 2]
    assert [step for step, _ in curves["train/label_loss"]] == [1, 2]
    assert curves["train/label_loss"][1][1] < curves["train/label_loss"][0][1]
    capsys.readouterr()
    exported = ["--model.init_args.init_from", str(run / "export")]
    main(["test", "--config", str(config), *add_predictions(tmp_path), *exported])
    assert "Held-out transitions" in capsys.readouterr().out


@pytest.mark.slow
def test_iwm_learns_what_others_would_have_done_then_imitates(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path, tiny_model, "WorldModelSFT"))
    collection = {"behaviour": "branches", "max_turns": 4, "num_workers": 1, "splits": ["train"]}
    predictions = add_predictions(tmp_path, collection=collection)
    main(["fit", "--config", config, "--run.name", "iwm", "--data.episodes", "null", *predictions])
    assert (
        "20 transitions of 4 episodes" in capsys.readouterr().err
    )  # 2 turns: 1 + 2 others, and the expert's
    export = str(tmp_path / "runs" / "iwm" / "export")
    imitation = str(write_config(tmp_path, tiny_model, "PolicySFT"))
    main(["fit", "--config", imitation, "--model.init_args.init_from", export])
    assert "Evaluation games" in capsys.readouterr().out


@pytest.mark.slow
def test_a_policy_reflects_with_the_weights_that_it_starts_from(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path, tiny_model, "PolicySFT"))
    answer = "<think>{thinking}</think><action>{action}</action>"
    reflect = [
        "--data.episodes.demonstrations.source",
        "reflection",
        "--data.episodes.demonstrations.reflection.max_tokens",
        "5",
        "--data.episodes.demonstrations.reflection.user",
        "{action}",
    ]
    reflect += ["--data.episodes.prompt.answer", answer, "--data.episodes.sampling.max_tokens", "20"]
    main(["fit", "--config", config, *reflect])
    first = read_labels(tmp_path / "expert.parquet", ChatFormat(load_tokenizer(str(tiny_model))))
    taught = str(tmp_path / "runs" / "r" / "export")
    own = [*reflect, "--model.init_args.init_from", taught, "--run.name", "second"]
    main(
        [
            "fit",
            "--config",
            config,
            *own,
            "--data.episodes.demonstrations.path",
            str(tmp_path / "second.parquet"),
        ]
    )
    second = read_labels(tmp_path / "second.parquet", ChatFormat(load_tokenizer(str(tiny_model))))
    assert [label.name for label in first] == [label.name for label in second]
    assert [label.answer_ids for label in first] != [label.answer_ids for label in second]
    assert "Evaluation games" in capsys.readouterr().out


@pytest.mark.heavy
def test_what_cannot_be_played_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path, tiny_model))
    assert "data.environment is not set" in error_of(
        ["fit", "--config", config, "--data.environment", "null"], capsys
    )
    error = error_of(["fit", "--config", config, "--data.episodes.splits", "[tset]"], capsys)
    assert "data.episodes.splits names 'tset'; the environment has train, validation" in error
    sft = str(write_config(tmp_path, tiny_model, "PolicySFT"))
    assert "data.episodes.demonstrations is not set" in error_of(
        ["fit", "--config", sft, "--data.episodes.demonstrations", "null"], capsys
    )
    world_model = str(write_config(tmp_path, tiny_model, "WorldModelGRPO"))
    assert "test plays episodes, but WorldModelGRPO does not" in error_of(
        ["test", "--config", world_model], capsys
    )
    assert "data.predictions is not set, but WorldModelGRPO trains on it" in error_of(
        ["fit", "--config", world_model], capsys
    )
    collection = {"behaviour": "random", "max_turns": 3, "num_workers": 1}
    unscored = add_predictions(tmp_path, collection=collection, reward=None)
    assert "data.predictions.reward is not set" in error_of(
        ["fit", "--config", world_model, *unscored], capsys
    )
