"""Callbacks around the real trainer on a tiny model: what they record, prove and obey."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from rwml_callbacks import RewardLogger, RolloutProgressBar, TraceRecorder, WeightSync
from rwml_callbacks.progress import describe

from rwml_lightning.evaluation import Result, episode_metrics, rollout_metrics
from rwml_lightning.generation import HFGenerator, WeightSyncError
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeBatch,
    EpisodeGroup,
    Playthrough,
    RolloutBatch,
    Turn,
)
from rwml_lightning.trace import GroupQuery, TraceReader
from support.callback_runs import fit, make_batch, write
from support.runs import rows_of


class Deaf(HFGenerator):
    """Takes every new version and keeps the old weights."""

    def update_weights(self, named_tensors: Any, version: int) -> None:
        self.policy_version = version


def test_a_generator_that_keeps_old_weights_is_found_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with pytest.raises(
        WeightSyncError, match=r"the weight update at step \d did not arrive: .* Deaf took differs from"
    ):
        fit(
            tmp_path,
            tiny_model,
            [WeightSync(tolerance=1e-4)],
            Deaf(str(tiny_model), device="cpu", share_weights=False),
        )


@pytest.mark.heavy
def test_weights_arrive_where_they_are_copied(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sync = WeightSync(tolerance=1e-4)
    trainer = fit(
        tmp_path, tiny_model, [sync], HFGenerator(str(tiny_model), device="cpu", share_weights=False)
    )
    assert trainer.global_step == 4
    assert 0 < sync.gap < 1e-4 or sync.gap == 0


def test_a_tolerance_of_ones_own_is_used(tiny_model: Path, tmp_path: Path) -> None:
    generator = HFGenerator(str(tiny_model), "bfloat16", device="cpu", share_weights=False)
    with pytest.raises(WeightSyncError, match=r"disagree on a fixed sequence by .* \(tolerance 1e-09\)"):
        fit(tmp_path, tiny_model, [WeightSync(tolerance=1e-9)], generator)


@pytest.mark.heavy
def test_the_run_store_holds_every_step_and_evaluation(tiny_model: Path, tmp_path: Path) -> None:
    logger, recorder = RewardLogger(tmp_path / "metrics.csv"), TraceRecorder(tmp_path / "trace.db")
    trainer = fit(tmp_path, tiny_model, [WeightSync(), logger, recorder])
    with TraceReader(tmp_path / "trace.db") as reader:
        assert [step.step for step in reader.steps("wm_grpo")] == [1, 2, 3, 4]
        assert reader.metrics("wm_grpo", ["wm/reward"])["wm/reward"] == [
            (step, value) for _, step, name, value in rows_of(tmp_path / "metrics.csv") if name == "wm/reward"
        ]
        evaluations = reader.evaluations()
        assert [e.step for e in evaluations] == [2, 4]
        assert reader.count_groups(GroupQuery(source="train")) == 32
        assert reader.count_groups(GroupQuery(source="held_out")) == 16
        (summary, *_) = reader.groups(GroupQuery(source="train"), limit=1)
        predictions = reader.predictions(summary.id)
        assert [p.member for p in predictions] == [0, 1, 2, 3]
        assert reader.run().status == "finished"
        assert reader.stages()[0].total_steps == 4
    for evaluation in evaluations:
        file = tmp_path / "evaluations" / f"wm_grpo-{evaluation.step}.json"
        place = {"stage": "wm_grpo", "step": evaluation.step}
        assert json.loads(file.read_text()) == place | {"predictions": evaluation.result}
        assert Result(**evaluation.result["results"][0]).count == 8
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    with TraceReader(tmp_path / "trace.db") as reader:
        assert reader.run().status == "finished"


class Ask(L.Callback):
    """Asks for something through the store, as the dashboard does, after a step."""

    def __init__(self, path: Path, step: int, command: Any) -> None:
        self.path, self.step, self.command = path, step, command

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            with TraceReader(self.path) as reader:
                reader.send_command(self.command)


@pytest.mark.heavy
def test_commands_of_a_reader_are_obeyed(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.db"
    callbacks = [
        Ask(path, 1, "checkpoint"),
        Ask(path, 2, "stop"),
        WeightSync(),
        RewardLogger(),
        TraceRecorder(path),
    ]
    trainer = fit(tmp_path, tiny_model, callbacks)
    assert trainer.global_step == 3
    assert (tmp_path / "checkpoints" / "asked-2.ckpt").is_file()
    with TraceReader(path) as reader:
        answers = {command.command: command.answer for command in reader.commands()}
    assert answers == {"checkpoint": "saved asked-2.ckpt", "stop": "at step 3"}


def test_a_failure_is_recorded(tiny_model: Path, tmp_path: Path) -> None:
    class Break(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise OSError("the disk is full\nand more")

    recorder = TraceRecorder(tmp_path / "trace.db")
    with pytest.raises(OSError, match="the disk is full"):
        fit(tmp_path, tiny_model, [WeightSync(), RewardLogger(), recorder, Break()])
    with TraceReader(tmp_path / "trace.db") as reader:
        assert (reader.run().status, reader.run().detail) == ("failed", "OSError: the disk is full")


def test_metrics_by_hand() -> None:
    assert rollout_metrics(make_batch()) == {
        "time/generate": 4.0,
        "wm/dropped_groups": 3.0,
        "wm/reward": 0.25,
        "wm/reward_std": pytest.approx(0.1875**0.5),
        "wm/format": 0.75,
        "wm/zero_variance_groups": 0.5,
        "wm/completion_tokens": 5.0,
        "wm/cut_off": 0.25,
        "wm/similarity": pytest.approx(0.5),
        "throughput/generated_tokens_per_s": 5.0,
    }
    assert rollout_metrics(RolloutBatch(0, 0, ())) == {"wm/dropped_groups": 0.0}


def test_metrics_of_play_by_hand() -> None:
    """Two games: in the first, two episodes of one and two turns; in the second one of three. Each turn has two tokens."""

    def play(*rewards: float) -> Playthrough:
        sample = ActionSample((1,), Completion((2, 3), (0.0, 0.0), "stop", 0), 0.0)
        turns = tuple(Turn("o", "A", valid=True, reward=0.0) for _ in rewards)
        episode = Episode("e", "env", "g", "t", 0, turns, "end", sum(rewards) > 0, False, "heat")
        return Playthrough(episode, tuple(replace(sample, reward=reward) for reward in rewards))

    groups = (
        EpisodeGroup("g", "s", (play(10.0), play(-0.1, 0.0))),
        EpisodeGroup("h", "s", (play(0.0, 0.0, 10.0),)),
    )
    metrics = episode_metrics(
        EpisodeBatch(0, 0, groups, dropped=("g: failed",), seconds={"generate": 4.0, "env": 2.0})
    )
    expected = {
        "policy/return": (10.0 - 0.1 + 10.0) / 3,
        "policy/success": (0.5 + 1.0) / 2,
        "policy/turns": (1.5 + 3.0) / 2,
        "policy/completion_tokens": 2.0,
        "policy/zero_variance_groups": 0.5,
        "policy/dropped_groups": 1.0,
        "throughput/generated_tokens_per_s": 12 / 4.0,
        "time/generate": 4.0,
        "time/env": 2.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert episode_metrics(EpisodeBatch(0, 0, (), dropped=("g: failed", "h: failed"))) == {
        "policy/dropped_groups": 2.0
    }


def test_parts_of_a_reward_are_means_over_the_predictions_that_have_them() -> None:
    parts = [{"true_reward": 1.0, "distance": 0.2}, {"true_reward": 0.0}, {"true_reward": 1.0, "reward": 9.0}]
    metrics = rollout_metrics(make_batch(*parts))
    assert metrics["wm/true_reward"] == pytest.approx(2 / 3)
    assert metrics["wm/distance"] == 0.2
    assert metrics["wm/reward"] == 0.25  # no part takes the place of the whole
    assert describe({**metrics, "time/update": 1.0}).startswith("reward 0.25  true reward 0.67  similarity")


@pytest.mark.heavy
def test_weights_and_biases_gets_the_same_numbers_over_optimizer_steps(
    tiny_model: Path, tmp_path: Path
) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    rewards = RewardLogger(tmp_path / "metrics.csv")
    fit(tmp_path, tiny_model, [WeightSync(), rewards], logger=logger)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    for name in ("wm/reward", "train/grad_norm", "time/generate", "val/accuracy"):
        last = [value for _, _, n, value in rows_of(tmp_path / "metrics.csv") if n == name][-1]
        assert summary[name] == pytest.approx(last), name
    assert summary["trainer/global_step"] == 4


def test_one_line_says_how_it_goes() -> None:
    text = describe({**rollout_metrics(make_batch()), "time/update": 1.25})
    assert text == (
        "reward 0.25  similarity 0.50  format 0.75  groups without variance 50 %  seconds: generate 4.0, update 1.2"
    )
    assert describe({"train/loss": 1.5, "time/update": 2.0}) == "loss 1.500  seconds: update 2.0"


@pytest.mark.heavy
@pytest.mark.parametrize("terminal", [True, False])
def test_training_and_held_out_batches_show_how_far_they_are(
    terminal: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bar = RolloutProgressBar()
    trainer = fit(tmp_path, tiny_model, [WeightSync(), RewardLogger(), bar])
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    shown = capsys.readouterr().err
    assert bar._progress is None
    assert shown.count("held-out") >= 3
    assert "0/1" in shown if terminal else "held-out 1/1" in shown
    assert "4/4" in shown
    assert ("\x1b[" in shown) == terminal


def test_little_variance_is_said_in_words(caplog: pytest.LogCaptureFixture) -> None:
    logger, module = RewardLogger(low_variance_share=0.1, patience=3), WorldModelGRPO(model="none")
    trainer: Any = SimpleNamespace(global_step=1)
    with caplog.at_level(logging.WARNING):
        for share in (1.0, 0.9, 1.0, 0.5, 0.5, 0.5):
            logger.on_step_metrics(trainer, module, {"wm/zero_variance_groups": share}, None)
    assert (
        caplog.text.count("Over the last 3 steps only 3 % of groups had members with different rewards") == 1
    )
    assert "Is tau_d too strict or too loose for these samples" in caplog.text
    assert len(caplog.records) == 1


FIRST = [
    ("wm_sft", 1, "a", 1.0),
    ("wm_grpo", 0, "val/x", 2.0),
    ("wm_grpo", 1, "a", 3.0),
    ("wm_grpo", 2, "a", 4.0),
    ("wm_grpo", 2, "val/x", 5.0),
    ("wm_grpo", 3, "a", 6.0),
]


@pytest.mark.parametrize(
    ("again", "kept"),
    [
        (
            ("wm_grpo", 2, "a", 9.0),
            3,
        ),  # resumed after step 1: its second step and all that followed are replaced
        (("wm_grpo", 2, "val/x", 9.0), 4),  # resumed after the training of step 2
        (("wm_grpo", 4, "a", 9.0), 6),
        (("wm_grpo", 0, "val/x", 9.0), 1),  # begun anew
        (("policy_grpo", 0, "a", 9.0), 6),  # another stage
    ],
)
def test_a_resumed_run_replaces_what_it_repeats(
    tmp_path: Path, again: tuple[str, int, str, float], kept: int
) -> None:
    path = tmp_path / "metrics.csv"
    write(path, *FIRST)
    assert rows_of(path) == FIRST
    write(path, again)
    assert rows_of(path) == [*FIRST[:kept], again]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


ODD = "wm\ud800\x00"
"""A name that neither UTF-8 nor the name of a file takes."""


def test_any_name_of_a_stage_and_a_metric_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, (ODD, 1, ODD, 1.0), (ODD, 2, ODD, 2.0))
    write(path, (ODD, 2, ODD, 3.0))  # resumed
    assert rows_of(path) == [
        ("wm\ufffd\x00", 1, "wm\ufffd\x00", 1.0),
        ("wm\ufffd\x00", 2, "wm\ufffd\x00", 3.0),
    ]


class OddStage(WorldModelGRPO):
    stage = ODD


@pytest.mark.heavy
def test_a_stage_of_any_name_is_trained_and_recorded(tiny_model: Path, tmp_path: Path) -> None:
    callbacks = [WeightSync(), RewardLogger(tmp_path / "metrics.csv"), TraceRecorder(tmp_path / "trace.db")]
    fit(tmp_path, tiny_model, callbacks, logger=CSVLogger(tmp_path), stage=OddStage)
    with TraceReader(tmp_path / "trace.db") as reader:
        assert [step.stage for step in reader.steps(ODD)] == [ODD] * 4
    written = tmp_path / "evaluations" / "wm\\ud800\\x00-4.json"
    assert json.loads(written.read_text())["stage"] == "wm\ufffd\x00"
