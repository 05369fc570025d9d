"""Hooks as the trainer calls them, by hand: what each writes, sends, keeps and leaves alone; nothing is trained."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import BarColumn
from rwml_callbacks import (
    EpisodeTable,
    Forgetting,
    PredictionTable,
    RewardHackingWatch,
    RewardLogger,
    RolloutProgressBar,
    StepCheckpoint,
    TraceRecorder,
    WeightChange,
    WeightSync,
    forgetting,
    weight_change,
)
from rwml_callbacks.easy_samples.report import log_filter
from rwml_callbacks.wandb_table import GrowingTable

from rwml_lightning.changed_weights import Change
from rwml_lightning.evaluation import EpisodeResult, Result
from rwml_lightning.modules import PolicyGRPO, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import EpisodeBatch, RolloutBatch
from rwml_lightning.trace import GroupQuery, TraceReader
from support.callback_runs import make_batch
from support.hacking import make_group as make_predictions
from support.recorder import Recorder
from support.runs import rows_of
from support.tables import make_group

PREDICTS: Any = WorldModelGRPO(model="none")
READS: Any = WorldModelSFT(model="none")
EPISODES = EpisodeBatch(0, 0, (make_group("a"),))


def make_trainer(step: int = 6, *callbacks: Any, **changes: Any) -> Any:
    """A trainer that is fitting, at a step."""
    fields: dict[str, Any] = {
        "global_step": step,
        "callbacks": list(callbacks),
        "loggers": [],
        "is_global_zero": True,
        "sanity_checking": False,
        "should_stop": False,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
    }
    return SimpleNamespace(**{**fields, **changes})


def make_result(name: str) -> Result:
    return Result(name, 4, 2, 0.5, 0.25, 0.0, 0.75, 1.0, None, {})


@pytest.fixture
def plays() -> Any:
    """A policy stage that has played two games and predicted two transitions."""
    module: Any = PolicyGRPO(model="none")
    module.games.groups, module.held_out.groups = (
        [make_group("a"), make_group("b")],
        list(make_batch().groups),
    )
    module.games.results = [EpisodeResult("all", 6, 2, {"success": 0.5})]
    module.held_out.results, module.held_out.floors = [make_result("held out")], [make_result("copy")]
    module.evaluation_metrics = {"val/accuracy": 0.5}
    return module


@pytest.fixture
def predicts() -> Any:
    """A world-model stage that has predicted two transitions."""
    module: Any = WorldModelGRPO(model="none")
    module.held_out.groups = list(make_batch().groups)
    module.held_out.results, module.held_out.floors = [make_result("all")], [make_result("copy")]
    module.evaluation_metrics = {"val/accuracy": 0.5}
    return module


@pytest.mark.parametrize("hook", ["train_start", "validation_start", "test_start", "predict_start"])
def test_weights_are_brought_before_anything_is_generated(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Recorder()
    monkeypatch.setattr(WeightSync, "sync", sent)
    getattr(WeightSync(), f"on_{hook}")(make_trainer(), PREDICTS)
    assert sent.calls == [(PREDICTS,)]
    getattr(WeightSync(), f"on_{hook}")(make_trainer(), READS)  # generates nothing to learn from
    assert sent.calls[1:] == [(READS,)] * (hook != "train_start")


def test_weights_are_brought_after_a_step_that_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Recorder()
    monkeypatch.setattr(WeightSync, "sync", sent)
    recorded = Recorder()
    monkeypatch.setattr(PolicyModule, "record", recorded)
    sync = WeightSync()
    sync.wait, sync.seconds, sync.gap = 0.5, 1.5, 0.25
    for module in (PREDICTS, READS):
        sync.on_train_batch_end(make_trainer(), module, {}, None, 0)
    assert sent.calls == [(PREDICTS,)]
    assert recorded.calls == [({"time/wait": 0.5, "time/sync": 1.5, "train/sync_gap": 0.25},)]


def test_numbers_are_written_with_their_stage_and_step(tmp_path: Path) -> None:
    logger = RewardLogger(tmp_path / "metrics.csv")
    logger.on_step_metrics(
        make_trainer(), PREDICTS, {"wm/reward": 0.25, "wm/zero_variance_groups": 0.5}, None
    )
    logger.on_metrics(make_trainer(7), READS, {"val/accuracy": 0.5})
    assert rows_of(tmp_path / "metrics.csv") == [
        ("wm_grpo", 6, "wm/reward", 0.25),
        ("wm_grpo", 6, "wm/zero_variance_groups", 0.5),
        ("wm_sft", 7, "val/accuracy", 0.5),
    ]
    assert logger._recent == [0.5]


@pytest.mark.parametrize(
    ("name", "question"),
    [("policy/zero_variance_groups", "games too hard"), ("wm/zero_variance_groups", "tau_d too strict")],
)
def test_what_to_ask_about_equal_rewards(name: str, question: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = RewardLogger(low_variance_share=1.1, patience=1)
    logger.on_step_metrics(make_trainer(), PREDICTS, {name: 0.5}, None)
    (line,) = caplog.messages
    assert question in line
    assert "only 50 % of groups" in line


def test_signs_of_a_step_join_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorder()
    monkeypatch.setattr(PolicyModule, "record", recorded)
    watch = RewardHackingWatch(patience=2)
    groups = (make_predictions(0, "You stand at door 0.", None), make_predictions(1, "You stand at door 1."))
    watch.on_train_batch_end(make_trainer(), PREDICTS, {"batch": RolloutBatch(0, 0, groups)}, None, 0)
    found = {"length_ratio": 1.0, "copied": 0.0, "content_free": 0.0, "exact": 1.0, "overlap": 1.0}
    named = {f"hacking/{name}": value for name, value in found.items()}
    assert recorded.calls == [(named,)]
    assert watch.state_dict()["recent"] == [named | {"reward": 1.0}]
    for batch in (None, EPISODES, RolloutBatch(0, 0, (make_predictions(0, None),))):
        watch.on_train_batch_end(make_trainer(), PREDICTS, {"batch": batch}, None, 0)
    watch.on_train_batch_end(make_trainer(), READS, {}, None, 0)
    assert len(recorded.calls) == len(watch.state_dict()["recent"]) == 1


def test_a_stage_s_start_is_recorded_with_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", 7)
    recorder = TraceRecorder(tmp_path / "trace.db")
    recorder.writer.set_status("failed")
    recorder.on_train_start(make_trainer(), PREDICTS)
    with TraceReader(tmp_path / "trace.db") as reader:
        (stage,) = reader.stages()
        assert (stage.stage, stage.total_steps, stage.config) == ("wm_grpo", 7, "")
        assert reader.run().status == "running"
        (tmp_path / "config.yaml").write_text("a: 1\n")
        recorder._trained = True
        recorder.on_train_start(make_trainer(), PREDICTS)
        assert reader.stages()[0].config == "a: 1\n"
        assert recorder._trained is False
        recorder.on_train_end(make_trainer(), PREDICTS)
        assert (reader.run().status, recorder._trained) == ("finished", True)
        recorder.on_exception(make_trainer(), PREDICTS, KeyError("a\nb"))
        assert (reader.run().status, reader.run().detail) == ("failed", "KeyError: 'a\\nb'")
        recorder.on_exception(make_trainer(), PREDICTS, ValueError("a\nb"))
        assert reader.run().detail == "ValueError: a"
    recorder.teardown(make_trainer(), PREDICTS, "fit")
    assert recorder._writer is None
    recorder.teardown(make_trainer(), PREDICTS, "fit")  # it was not opened again
    assert recorder._writer is None


def test_a_step_is_recorded_with_what_it_was_made_from(tmp_path: Path) -> None:
    recorder = TraceRecorder(tmp_path / "trace.db")
    for step, reward, batch in ((1, 0.5, make_batch()), (2, 0.75, EPISODES), (3, 0.5, None)):
        recorder.on_step_metrics(make_trainer(step), PREDICTS, {"wm/reward": reward}, batch)
    with TraceReader(tmp_path / "trace.db") as reader:
        assert [step.step for step in reader.steps("wm_grpo")] == [1, 2, 3]
        curve = reader.metrics("wm_grpo", ["wm/reward"])["wm/reward"]
        assert [tuple(point) for point in curve] == [(1, 0.5), (2, 0.75), (3, 0.5)]
        groups = reader.groups(GroupQuery(source="train"))
        assert {(g.stage, g.step, g.transition_id) for g in groups} == {
            ("wm_grpo", 1, "t0"),
            ("wm_grpo", 1, "t1"),
        }
        episodes = reader.episodes_by_id(reader.episode_ids())
        assert [(e.stage, e.step, e.source, e.game) for e in episodes] == [("wm_grpo", 2, "train", "a")] * 3


def test_after_a_step_the_trainer_does_what_it_was_asked(tmp_path: Path) -> None:
    recorder, trainer = TraceRecorder(tmp_path / "trace.db"), make_trainer()
    recorder.on_step_metrics(trainer, PREDICTS, {}, None)
    assert not trainer.should_stop
    with TraceReader(tmp_path / "trace.db") as reader:
        reader.send_command("stop")
        recorder.on_step_metrics(trainer, PREDICTS, {}, None)
        (command,) = reader.commands()
    assert (trainer.should_stop, recorder.stop_requested, command.answer) == (True, True, "at step 6")


def test_held_out_predictions_are_recorded(tmp_path: Path, predicts: Any) -> None:
    recorder = TraceRecorder(tmp_path / "trace.db")
    recorder.writer.set_status("running")
    recorder.on_validation_end(make_trainer(), predicts)
    held_out = predicts.held_out
    result = {"results": [asdict(row) for row in held_out.results], "floors": [asdict(held_out.floors[0])]}
    with TraceReader(tmp_path / "trace.db") as reader:
        (evaluation,) = reader.evaluations()
        assert (evaluation.stage, evaluation.step, evaluation.name) == ("wm_grpo", 6, "held_out")
        assert evaluation.result == result
        assert reader.count_groups(GroupQuery(source="held_out")) == 2
        assert reader.metric_names("wm_grpo") == ["val/accuracy"]
        assert [tuple(p) for p in reader.metrics("wm_grpo", ["val/accuracy"])["val/accuracy"]] == [(6, 0.5)]
        assert reader.run().status == "running"
        written = json.loads((tmp_path / "evaluations" / "wm_grpo-6.json").read_text())
        assert written == {"stage": "wm_grpo", "step": 6, "predictions": result}
        recorder._trained = True  # the evaluation after training
        recorder.on_validation_end(make_trainer(), predicts)
        assert reader.run().status == "finished"


def test_held_out_games_are_recorded_with_what_is_predicted_beside_them(tmp_path: Path, plays: Any) -> None:
    recorder = TraceRecorder(tmp_path / "trace.db")
    recorder.on_validation_end(make_trainer(), plays)
    rows = [asdict(row) for row in plays.games.results]
    held_out = {
        "results": [asdict(plays.held_out.results[0])],
        "floors": [asdict(plays.held_out.floors[0])],
    }
    with TraceReader(tmp_path / "trace.db") as reader:
        evaluations = {e.name: e for e in reader.evaluations()}
        assert {e.stage for e in evaluations.values()} == {"policy_grpo"}
        assert {e.step for e in evaluations.values()} == {6}
        assert {name: e.result for name, e in evaluations.items()} == {
            "episodes": {"results": rows},
            "held_out": held_out,
        }
        episodes = reader.episodes_by_id(reader.episode_ids())
        assert [(e.stage, e.step, e.source, e.game) for e in episodes] == [
            ("policy_grpo", 6, "held_out", game) for game in "aaabbb"
        ]
        assert reader.count_groups(GroupQuery(source="held_out")) == 2
        assert reader.metric_names("policy_grpo") == ["val/accuracy"]
    file = tmp_path / "evaluations" / "policy_grpo-6.json"
    place = {"stage": "policy_grpo", "step": 6}
    assert json.loads(file.read_text()) == place | {"games": {"results": rows}, "predictions": held_out}
    plays.held_out.start()
    recorder.on_validation_end(make_trainer(7), plays)
    written = json.loads((tmp_path / "evaluations" / "policy_grpo-7.json").read_text())
    assert written == {"stage": "policy_grpo", "step": 7, "games": {"results": rows}}


def test_an_evaluation_of_nothing_is_not_recorded(tmp_path: Path, plays: Any, predicts: Any) -> None:
    recorder = TraceRecorder(tmp_path / "trace.db")
    recorder.writer.set_status("running")
    plays.held_out.start()
    plays.games.start()
    predicts.held_out.start()
    recorder._trained = True
    for module in (plays, predicts):
        recorder.on_validation_end(make_trainer(), module)
    with TraceReader(tmp_path / "trace.db") as reader:
        assert reader.evaluations() == []
        assert reader.run().status == "running"
    assert not (tmp_path / "evaluations").exists()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What tables send; W&B is there."""
    sent, logger = Recorder(), SimpleNamespace(log_metrics=lambda metrics, step: None)
    monkeypatch.setattr(GrowingTable, "send", sent)
    for user in ("prediction_table", "episode_table"):
        monkeypatch.setattr(f"rwml_callbacks.{user}.wandb_logger", lambda trainer: logger)
    return sent


FITTING, VALIDATING = (SimpleNamespace(fn=fn) for fn in (TrainerFn.FITTING, TrainerFn.VALIDATING))


def test_held_out_rows_are_sent_at_once_where_no_step_follows(
    sent: Recorder, plays: Any, predicts: Any
) -> None:
    for table, module, rows in ((PredictionTable(), predicts, 4), (EpisodeTable(), plays, 8)):
        sent.calls.clear()
        table.on_validation_end(make_trainer(sanity_checking=True, state=VALIDATING), module)
        assert (table.state_dict()["rows"], sent.calls) == ([], [])
        table.on_validation_end(make_trainer(state=FITTING), module)
        assert (len(table.state_dict()["rows"]), sent.calls) == (rows, [])
        trainer = make_trainer(state=VALIDATING)
        table.on_validation_end(trainer, module)
        assert (len(table.state_dict()["rows"]), sent.calls) == (2 * rows, [(trainer,)])
        assert {tuple(row[:3]) for row in table.state_dict()["rows"]} == {(6, module.stage, "validation")}


def test_each_table_takes_rows_of_its_own_kind(sent: Recorder, plays: Any, predicts: Any) -> None:
    predictions, episodes = PredictionTable(), EpisodeTable()
    predictions.on_validation_end(make_trainer(), plays)  # what the policy predicts beside its games
    assert len(predictions.state_dict()["rows"]) == 4
    predictions.on_validation_end(make_trainer(), READS)  # has predicted nothing
    assert len(predictions.state_dict()["rows"]) == 4
    episodes.on_validation_end(make_trainer(state=VALIDATING), predicts)
    assert (episodes.state_dict()["rows"], sent.calls) == ([], [])


def test_rows_of_training_are_sent_in_turn(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Recorder()
    monkeypatch.setattr(GrowingTable, "send_now_and_then", asked)
    trainer, predictions, episodes = make_trainer(), PredictionTable(), EpisodeTable()
    for batch in (make_batch(), EPISODES, None):
        outputs = {"batch": batch} if batch is not None else {}
        predictions.on_train_batch_end(trainer, PREDICTS, outputs, None, 0)
        episodes.on_train_batch_end(trainer, PREDICTS, outputs, None, 0)
    assert asked.calls == [(trainer, PREDICTS)] * 2
    assert {tuple(row[:3]) for row in predictions.state_dict()["rows"]} == {(6, "wm_grpo", "train")}
    assert {tuple(row[:4]) for row in episodes.state_dict()["rows"]} == {(6, "wm_grpo", "train", "a")}
    assert sent.calls == []
    predictions.on_train_end(trainer, PREDICTS)
    episodes.on_exception(trainer, PREDICTS, OSError())
    assert sent.calls == [(trainer,)] * 2  # nothing is lost at the end


def test_w_and_b_gets_the_filter_s_histogram_at_the_start() -> None:
    class Log(WandbLogger):
        """Keeps what it gets."""

        def __init__(self) -> None:
            self.numbers, self.drawn = Recorder(), Recorder()

        @property
        def experiment(self) -> Any:
            return SimpleNamespace(log=self.drawn)

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.numbers(metrics, step)

    logger, metrics = Log(), {"filter/easy": 2.0}
    log_filter([logger], metrics, {"a": 0.05, "b": 0.95, "c": 1.0})
    assert logger.numbers.calls == [(metrics, 0)]
    (((row,),),) = (logger.drawn.calls,)
    assert row.keys() == {"filter/mean_reward", "trainer/global_step"}
    assert row["trainer/global_step"] == 0
    bars = row["filter/mean_reward"]
    assert bars.histogram == [1, *[0] * 8, 2]
    assert bars.bins == pytest.approx([n / 10 for n in range(11)])


def test_beside_training_the_bar_says_no_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", 10)
    bar, trainer = RolloutProgressBar(), make_trainer(num_val_batches=[2, 3])
    bar._trainer = trainer
    bar.on_validation_batch_end(trainer, PREDICTS, None, None, 0)
    bar.on_validation_batch_end(trainer, PREDICTS, None, None, 2, 1)
    assert capsys.readouterr().err == "held-out 1/5\nheld-out 5/5\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar.on_validation_start(trainer, PREDICTS)
    progress = bar._progress
    assert progress is not None
    assert isinstance(progress.columns[1], BarColumn)
    assert progress.columns[1].bar_width == 20
    bar.on_validation_end(trainer, PREDICTS)
    assert (progress.live.is_started, progress.tasks) == (False, [])  # no stage is being trained
    assert (bar._progress, bar._held_out) == (None, None)
    bar.on_train_start(trainer, PREDICTS)
    bar.on_validation_end(trainer, PREDICTS)  # the stage's own bar stays
    assert bar._progress is not None
    assert len(bar._progress.tasks) == 1
    bar.on_train_end(trainer, PREDICTS)


def test_changed_weights_are_those_of_the_policy_against_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Change(1, "q", 3, 12)
    start, compare = Recorder("start"), Recorder([change])
    monkeypatch.setattr(weight_change, "starting_weights", start)
    monkeypatch.setattr(weight_change, "compare_weights", compare)
    monkeypatch.setattr(weight_change, "checkpoint_tensors", lambda *given: given)
    module: Any = SimpleNamespace(
        model="m", init_from="i", policy="policy", generator_tensors=lambda: ["tensors"]
    )
    analysis = WeightChange(tolerance=0.5)
    for _ in range(2):
        found = analysis.measure(make_trainer(), module)
    assert start.calls == [("m", "i")]  # read once
    assert compare.calls == [("start", ("policy", ["tensors"]), 0.5)] * 2
    assert found.metrics == {"change/all": 0.25, "change/q": 0.25}
    assert found.details == [asdict(change)]
    table = analysis.render(found)
    assert str(table.title).startswith("Changed weights, per cent of scalars")
    assert next(iter(table.columns[0].cells)) == "1"


def test_a_checkpoint_is_due_where_a_batch_passes_a_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Recorder()
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", saved)
    module: Any = WorldModelGRPO(model="none")
    module.steps_per_batch = 2
    for step in (2, 4, 6, 10):
        trainer = make_trainer(step)
        StepCheckpoint(tmp_path, 5).on_train_batch_end(trainer, module, {"a": 1}, "batch", step // 2)
    assert [(given[0].global_step, *given[1:]) for given in saved.calls] == [
        (6, module, {"a": 1}, "batch", 3),
        (10, module, {"a": 1}, "batch", 5),
    ]


def test_the_harness_is_asked_for_the_policy_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the harness")
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="the harness")
    scores = {"a": {"acc,none": 0.5}, "b_part": {"acc,none": 0.25}}
    asked: dict[str, Any] = {}

    def evaluate(**given: Any) -> Any:
        asked.update(given)
        policy.eval()  # as the harness does
        return {"results": scores, "group_subtasks": {"b": ["b_part"]}}

    policy = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    module: Any = SimpleNamespace(policy=policy, tokenizer=SimpleNamespace(chat_template="{{ messages }}"))
    trainer: Any = make_trainer(datamodule=SimpleNamespace(chat_template_kwargs={"enable_thinking": False}))
    monkeypatch.setattr(huggingface, "HFLM", lambda policy, **given: (policy, given))
    monkeypatch.setattr(lm_eval, "simple_evaluate", evaluate)
    monkeypatch.setattr(forgetting, "task_manager", lambda path: f"tasks of {path}")
    monkeypatch.setattr(forgetting, "obstacle", lambda manager, task: "gone" if task == "c" else None)
    found = Forgetting(["a", "c"], limit=7, batch_size=3, include_path=str(tmp_path)).measure(trainer, module)
    given = {
        "tokenizer": module.tokenizer,
        "batch_size": 3,
        "chat_template_args": {"enable_thinking": False},
    }
    assert asked == {
        "model": (policy, given),
        "tasks": ["a"],
        "task_manager": f"tasks of {tmp_path}",
        "limit": 7,
        "apply_chat_template": True,
        "log_samples": False,
    }
    assert [part.training for part in policy] == [True, False]
    assert found.metrics == {"forgetting/a/acc": 0.5}  # a part of a group stands in its group
    assert found.details == scores
    module.tokenizer.chat_template = None
    Forgetting(["a"], include_path=str(tmp_path)).measure(trainer, module)
    assert asked["apply_chat_template"] is False
    Forgetting(["a"], apply_chat_template=True).measure(trainer, module)
    assert asked["apply_chat_template"] is True
    assert Forgetting(["c"]).measure(trainer, module).metrics == {}
