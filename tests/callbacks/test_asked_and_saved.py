"""What the recorder is asked for, what checkpoints are named, what is synchronised, and the rows of tables, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from rwml_callbacks import (
    EpisodeTable,
    PredictionTable,
    RewardLogger,
    StepCheckpoint,
    TraceRecorder,
    WeightSync,
    trace_recorder,
)
from rwml_callbacks.wandb_table import wandb_logger

from rwml_lightning.data.loader import Draw, StepLoader
from rwml_lightning.evaluation import episode_metrics, rollout_metrics
from rwml_lightning.modules import PolicyGRPO, WorldModelGRPO
from rwml_lightning.schema import EpisodeBatch, RolloutBatch
from support.callback_runs import fit, make_batch
from support.tables import Log, make_group


class Asked:
    """A run store in which each look at the control table finds the next commands."""

    def __init__(self, *looks: list[str]) -> None:
        self.looks = list(looks)
        self.events: list[Any] = []
        self.num_commands = 0

    def take_commands(self) -> list[Any]:
        names = self.looks.pop(0)
        self.num_commands += len(names)
        return [SimpleNamespace(id=f"c-{name}", command=name) for name in names]

    def acknowledge(self, command_id: str, answer: str) -> None:
        self.events.append((command_id, answer))

    def set_status(self, status: str) -> None:
        self.events.append(status)

    def heartbeat(self) -> None:
        self.events.append("beat")


class Trainer:
    """A trainer at step 7 that may be told to save and to stop."""

    global_step = 7
    should_stop = False

    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


PAUSED, RUNNING, BEAT = ["paused", ("c-pause", "at step 7")], ["running", ("c-resume", "at step 7")], "beat"


@pytest.mark.parametrize(
    ("looks", "events", "stops"),
    [
        ([[]], [], False),
        ([["pause"], [], ["resume"]], [*PAUSED, BEAT, BEAT, *RUNNING], False),
        ([["pause"], ["stop"]], [*PAUSED, BEAT, ("c-stop", "at step 7")], True),
        ([["pause", "resume"]], [*PAUSED, *RUNNING], False),
        ([["checkpoint", "stop"]], [("c-checkpoint", "saved asked-7.ckpt"), ("c-stop", "at step 7")], True),
        (
            [["pause"], ["checkpoint"], ["resume"]],
            [*PAUSED, BEAT, ("c-checkpoint", "saved asked-7.ckpt"), BEAT, *RUNNING],
            False,
        ),
        ([["resume"]], RUNNING, False),
    ],
)
def test_the_recorder_does_what_it_is_asked_and_answers(
    looks: list[list[str]], events: list[Any], stops: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(trace_recorder.time, "sleep", naps.append)
    recorder, trainer, store = TraceRecorder(tmp_path / "trace.db"), Trainer(), Asked(*looks)
    recorder._writer = store  # type: ignore[assignment]
    recorder._obey(trainer)  # type: ignore[arg-type]
    assert store.events == events
    assert naps == [0.5] * events.count(BEAT)
    assert (trainer.should_stop, recorder.stop_requested) == (stops, stops)
    wanted = any("checkpoint" in look for look in looks)
    assert trainer.saved == [tmp_path / "checkpoints" / "asked-7.ckpt"] * wanted


@pytest.mark.heavy
def test_the_newest_checkpoint_is_kept_under_its_step(tiny_model: Path, tmp_path: Path) -> None:
    """Four steps, the first checkpoint after the third, by an interval of three."""
    seen: list[list[str]] = []

    class See(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(sorted(file.name for file in (tmp_path / "kept").glob("*")))

    own = StepCheckpoint(tmp_path / "kept", every_n_steps=3)
    fit(tmp_path, tiny_model, [WeightSync(), own, See()])
    assert seen == [[], [], [], ["step-3.ckpt"]]
    own = StepCheckpoint(tmp_path / "kept", every_n_steps=2)
    seen.clear()
    (tmp_path / "kept" / "step-3.ckpt").unlink()
    fit(tmp_path, tiny_model, [WeightSync(), own, See()])
    assert seen == [[], [], ["step-2.ckpt"], ["step-2.ckpt"]]
    assert [file.name for file in (tmp_path / "kept").glob("*")] == ["step-4.ckpt"]
    assert StepCheckpoint(tmp_path).every_n_steps == 50
    assert StepCheckpoint(tmp_path, 1).every_n_steps == 1


class Check:
    """Stands for the check of weights: notes what it is given, and finds a gap, or nothing to do."""

    def __init__(self, gap: float | None) -> None:
        self.gap = gap
        self.given: list[Any] = []

    def update(self, *given: Any) -> float | None:
        self.given.append(given)
        return self.gap


def test_the_generator_gets_the_weights_of_this_version() -> None:
    generator = SimpleNamespace()
    data = SimpleNamespace(generator=generator, probe_ids=lambda: [1, 2])
    trainer = SimpleNamespace(datamodule=data, train_dataloader=None)
    module: Any = SimpleNamespace(trainer=trainer, policy=None, policy_version=6, device_mesh=None)
    sync = WeightSync()
    sync._check = check = Check(0.25)  # type: ignore[assignment]
    sync.sync(module)
    assert check.given == [(generator, module, 6, [1, 2])]
    assert sync.gap == 0.25
    assert 0 < sync.seconds < 5
    seconds, check.gap = sync.seconds, None
    sync.sync(module)
    assert (sync.gap, sync.seconds) == (0.25, seconds)  # of the last time that there was something to do
    loader: StepLoader[Any, Any] = StepLoader(Draw([], 1, lambda step, items: None))
    trainer.train_dataloader = loader
    for settled in (True, False):  # a signal has come while the next batch was being made
        loader.settled = lambda: settled  # type: ignore[method-assign] # noqa: B023
        sync.sync(module)
        assert len(check.given) == 3


def test_a_warm_up_refuses_a_checkpoint_that_no_stage_could_resume(tmp_path: Path) -> None:
    recorder, trainer, store = TraceRecorder(tmp_path / "t.db", False), Trainer(), Asked(["checkpoint"])
    recorder._writer = store  # type: ignore[assignment]
    recorder._obey(trainer)  # type: ignore[arg-type]
    assert trainer.saved == []
    (answer,) = store.events
    assert answer == (
        "c-checkpoint",
        "not saved: a warm-up has no checkpoints, and is repeated from its start",
    )


def test_the_check_has_the_settings() -> None:
    default, own = WeightSync(), WeightSync(0.5, 7)
    assert (default.seconds, default.gap) == (0.0, 0.0)
    assert (default._check.tolerance, default._check.num_tokens) == (None, 32)
    assert (own._check.tolerance, own._check.num_tokens) == (0.5, 7)


@pytest.mark.parametrize(("split", "advantage"), [("train", 0.5), ("validation", None)])
def test_a_row_holds_a_prediction(
    split: str, advantage: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Log(monkeypatch, resumed=False)
    groups = [
        replace(
            group, predictions=tuple(replace(p, advantage=0.5, text="raw text") for p in group.predictions)
        )
        for group in make_batch().groups
    ]
    said = replace(groups[0].predictions[1], next_state="a door, and more", text="<think>")
    groups[0] = replace(groups[0], predictions=(groups[0].predictions[0], said))
    table = PredictionTable(rows_per_step=3, max_chars=8)
    trainer: Any = SimpleNamespace(global_step=6)
    table.add(trainer, WorldModelGRPO(model="none"), split, groups)
    place = (6, "wm_grpo", split, "go to d…", "other")
    assert [tuple(row) for row in table.state_dict()["rows"]] == [
        (*place, "raw text", "You sta…", 0.9, 1.0, advantage, True, 0),
        (*place, "raw text", "You sta…", 0.1, 0.0, advantage, True, 0),
        (*place, "a door,…", "You sta…", 0.5, 0.0, advantage, True, 0),
    ]
    table.add(trainer, WorldModelGRPO(model="none"), split, [])
    assert len(table.state_dict()["rows"]) == 3


@pytest.mark.parametrize(("split", "prefix"), [("train", "wm"), ("validation", "val")])
def test_histograms_are_named_by_where_they_are_from(
    split: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: got.append((metrics, step)))
    monkeypatch.setattr("rwml_callbacks.prediction_table.wandb_logger", lambda trainer: logger)
    trainer: Any = SimpleNamespace(global_step=6)
    PredictionTable().add(trainer, WorldModelGRPO(model="none"), split, make_batch().groups)
    ((histograms, step),) = got
    assert step == 6
    names = ("rewards", "completion_lengths", "similarities")
    assert [sum(histograms[f"{prefix}/{name}"].histogram) for name in names] == [4, 4, 3]
    assert len(histograms) == 3


def test_defaults_of_tables_and_which_logger_is_w_and_b(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, episodes = PredictionTable(), EpisodeTable()
    assert (predictions.rows_per_step, predictions.max_chars) == (16, 500)
    assert (episodes.episodes_per_step, episodes.max_chars) == (4, 500)
    for kind, name in ((PredictionTable, "max_chars"), (EpisodeTable, "max_chars")):
        assert kind(**{name: 1}).max_chars == 1  # type: ignore[operator]
        with pytest.raises(ValueError, match=f"^{kind.__name__}: {name} is 0; it must be at least 1$"):
            kind(**{name: 0})  # type: ignore[operator]
    trainer: Any = SimpleNamespace(loggers=[SimpleNamespace()])
    assert wandb_logger(trainer) is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_row_holds_a_turn(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_callbacks.episode_table.wandb_logger", lambda trainer: object())
    table = EpisodeTable(episodes_per_step=3, max_chars=4)
    trainer: Any = SimpleNamespace(global_step=6)
    shorter = make_group("b", 1)
    shorter = replace(shorter, members=shorter.members[:1])
    table.add(trainer, PolicyGRPO(model="none"), split, [shorter, make_group("a")])
    place = (6, "policy_grpo", split)
    paid = (0.25,) if split == "train" else (None,)

    def turns(member: int) -> list[Any]:
        which = (*place, "a", "walk", member, True)
        texts = [("roo…", "xxx…", "go …")] * 2
        return [(*which, n, *text, n > 0, 0.5 * n, *paid) for n, text in enumerate(texts)]

    first = (*place, "b", "walk", 0, False, 0, "roo…", "xxx…", "go …", False, 0.0, *paid)
    assert [tuple(row) for row in table.state_dict()["rows"]] == [first, *turns(0), *turns(1)]


class Due:
    """A table that notes when it is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, planned: int, taken: int) -> None:
        self.sent: list[int] = []
        monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", planned)
        monkeypatch.setattr(WorldModelGRPO, "steps_per_batch", taken)
        monkeypatch.setattr(
            PredictionTable, "send", lambda table, trainer: self.sent.append(trainer.global_step)
        )

    def run(self, steps: range) -> list[int]:
        for step in steps:
            trainer: Any = SimpleNamespace(global_step=step)
            PredictionTable().send_now_and_then(trainer, WorldModelGRPO(model="none"))
        return self.sent


@pytest.mark.parametrize(
    ("planned", "taken", "sent"), [(89, 1, [1, 2, 3, 4, 5, 6]), (90, 1, [2, 4, 6]), (180, 1, [3, 6]), (270, 2, [4, 8, 12])]
)  # fmt: skip
def test_a_long_run_sends_several_steps_at_once(
    planned: int, taken: int, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Due(monkeypatch, planned, taken).run(range(taken, 6 * taken + 1, taken)) == sent


def test_a_batch_without_time_or_verdicts_has_no_throughput_and_no_similarity() -> None:
    groups = make_batch().groups
    plain = [replace(p, score=replace(p.score, similarity=None)) for p in groups[0].predictions]
    batch = RolloutBatch(
        0, 0, (replace(groups[0], predictions=tuple(plain)),), seconds={"generate": 0.0, "reward": 1.5}
    )
    metrics = rollout_metrics(batch)
    assert (metrics["time/generate"], metrics["time/reward"]) == (0.0, 1.5)
    assert metrics.keys().isdisjoint({"wm/similarity", "throughput/generated_tokens_per_s"})


def test_episodes_are_measured_by_game_but_for_chances_of_passing() -> None:
    one, other = make_group("a"), make_group("b")
    measured = replace(one.members[0].episode, measures={"score": 4.0})
    one = replace(one, members=(replace(one.members[0], episode=measured), *one.members[1:]))
    metrics = episode_metrics(EpisodeBatch(0, 0, (one, other)))
    assert metrics["policy/score"] == 4.0  # where a game states it
    assert metrics["policy/steps_to_success"] == 2.0  # of the game that was solved
    assert metrics["policy/invalid_actions"] == 0.5
    assert not any("pass@" in name for name in metrics)
    assert "throughput/generated_tokens_per_s" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_what_a_resumed_run_repeats_is_of_its_stage_and_kind(tmp_path: Path) -> None:
    """A probe of step 2 drops probes from there on, and nothing that was recorded of step 2 itself."""

    def write(logger: RewardLogger, *rows: tuple[int, str]) -> None:
        for step, name in rows:
            logger.write("wm_grpo", step, {name: float(step), f"{name}2": 0.0})

    path = tmp_path / "metrics.csv"
    write(
        RewardLogger(path),
        (1, "wm/a"),
        (2, "wm/a"),
        (2, "val/a"),
        (2, "probe/a"),
        (3, "wm/a"),
        (3, "probe/a"),
    )
    write(RewardLogger(path), (2, "probe/a"), (3, "wm/a"), (3, "probe/a"))
    rows = [tuple(line.split(",")[1:3]) for line in path.read_text().splitlines()[1:]]
    expected = [
        ("1", "wm/a"),
        ("2", "wm/a"),
        ("2", "val/a"),
        ("2", "probe/a"),
        ("3", "wm/a"),
        ("3", "probe/a"),
    ]
    assert rows == [(step, f"{name}{end}") for step, name in expected for end in ("", "2")]
