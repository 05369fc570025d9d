"""The line that says how training goes, and the bar around it, by hand."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_callbacks import RolloutProgressBar
from rwml_callbacks.progress import describe

from rwml_lightning.modules import WorldModelGRPO

WORLD_MODEL = {"wm/reward": 0.254, "wm/format": 0.75, "wm/zero_variance_groups": 0.5}
PLAY = {
    "policy/success": 0.5,
    "policy/return": 3.256,
    "policy/turns": 4.25,
    "policy/zero_variance_groups": 0.25,
}
SECONDS = {"time/sync": 0.5, "time/update": 4.0, "time/reward": 2.0, "time/generate": 1.0, "time/env": 3.0}


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        (WORLD_MODEL, "reward 0.25  similarity nan  format 0.75  groups without variance 50 %  seconds: "),
        (
            WORLD_MODEL | {"wm/true_reward": 0.125, "wm/similarity": 0.616},
            "reward 0.25  true reward 0.12  similarity 0.62  format 0.75  groups without variance 50 %  seconds: ",
        ),
        (
            PLAY,
            "success 0.50  return 3.26  turns 4.2  invalid actions 0 %  groups without variance 25 %  seconds: ",
        ),
        (
            PLAY | {"policy/invalid_actions": 0.1},
            "success 0.50  return 3.26  turns 4.2  invalid actions 10 %  groups without variance 25 %  seconds: ",
        ),
        ({"train/loss": 0.1234}, "loss 0.123  seconds: "),
        ({}, "loss nan  seconds: "),
    ],
)
def test_each_kind_of_step_has_its_line(metrics: dict[str, float], line: str) -> None:
    assert describe(metrics) == line
    phases = "generate 1.0, reward 2.0, env 3.0, update 4.0, sync 0.5"
    assert describe(metrics | SECONDS) == line + phases
    assert describe(metrics | {"time/other": 1.0}) == line


MODULE: Any = WorldModelGRPO(model="none")


def make_trainer(step: int, first: bool = True) -> Any:
    return SimpleNamespace(global_step=step, is_global_zero=first, callbacks=[], num_val_batches=[2, 3])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", 10)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def tell(bar: RolloutProgressBar, trainer: Any) -> None:
    """A step, and a held-out batch, as the trainer reports them."""
    bar._trainer = trainer
    bar.on_step_metrics(trainer, MODULE, {"train/loss": 0.5}, None)
    bar.on_validation_batch_end(trainer, MODULE, None, None, 1, dataloader_idx=1)


def test_the_bar_begins_where_the_stage_does(terminal: None) -> None:
    bar = RolloutProgressBar()
    bar.on_train_start(make_trainer(3), MODULE)
    assert bar._progress is not None
    (task,) = bar._progress.tasks
    assert (task.total, task.completed, task.fields["name"], task.description) == (10, 3, "wm_grpo", "")
    bar.on_validation_start(make_trainer(3), MODULE)
    held_out = bar._progress.tasks[1]
    assert (held_out.total, held_out.completed, held_out.fields["name"]) == (5, 0, "held-out")
    tell(bar, make_trainer(4))
    assert (task.completed, task.description) == (4, "loss 0.500  seconds: ")
    assert held_out.completed == 1
    progress = bar._progress
    assert progress.console.stderr
    shown = [column.__class__.__name__ for column in progress.columns]
    assert shown == ["TextColumn", "BarColumn", "MofNCompleteColumn", "TimeRemainingColumn", "TextColumn"]
    task.fields["name"], task.description = "[bold]a[/nonsense]", "[@click=app.quit]b[/]"
    assert [str(progress.columns[place].render(task)) for place in (0, 4)] == [  # type: ignore[attr-defined]
        "[bold]a[/nonsense]", "[@click=app.quit]b[/]",
    ]  # fmt: skip
    bar.on_validation_end(make_trainer(4), MODULE)
    assert len(progress.tasks) == 1
    assert progress.live.is_started
    bar.on_train_end(make_trainer(4), MODULE)
    assert not progress.live.is_started
    assert (bar._progress, bar._task, bar._held_out) == (None, None, None)


def test_an_error_ends_the_bar(terminal: None) -> None:
    bar = RolloutProgressBar()
    bar.on_train_start(make_trainer(0), MODULE)
    assert bar._progress is not None
    progress = bar._progress
    bar.on_exception(make_trainer(0), MODULE, OSError())
    assert not progress.live.is_started


def test_without_a_terminal_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WorldModelGRPO, "num_planned_steps", 10)
    bar = RolloutProgressBar()
    bar.on_train_start(make_trainer(3), MODULE)
    assert bar._progress is None
    tell(bar, make_trainer(4))
    assert capsys.readouterr().err == "wm_grpo 4/10  loss 0.500  seconds: \nheld-out 4/5\n"


@pytest.mark.parametrize("quiet", ["disabled", "another rank"])
@pytest.mark.parametrize("tty", [True, False])
def test_a_disabled_bar_and_other_ranks_say_nothing(
    quiet: str, tty: bool, terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
    bar, trainer = RolloutProgressBar(), make_trainer(4, first=quiet == "disabled")
    if quiet == "disabled":
        bar.disable()
    bar.on_train_start(trainer, MODULE)
    tell(bar, trainer)
    assert bar._progress is None
    assert capsys.readouterr().err == ""
    bar.enable()
    bar.on_train_start(make_trainer(4), MODULE)
    assert (bar._progress is not None) == tty
    bar.on_train_end(trainer, MODULE)
