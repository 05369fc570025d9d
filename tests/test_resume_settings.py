"""What a run that is resumed takes from the checkpoint, what from the config, and which steps it trains."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.cli import main
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.trace import TraceReader
from support.command_line import error_of
from support.runs import make_config, write_config
from support.worlds import make_world

pytestmark = pytest.mark.heavy

STEPS_PER_PASS = 4  # 32 training transitions, 8 a step


class Stop(L.Callback):
    """Asks for a stop once, as the dashboard does."""

    def __init__(self, step: int, trace: str) -> None:
        self.step, self.trace = step, trace

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            with TraceReader(Path(self.trace)) as reader:
                reader.send_command("stop")


def run(folder: Path, model: Path, name: str, *arguments: str, **changes: Any) -> Path:
    """``fit`` a run of four steps a pass; returns its folder."""
    settings: dict[str, Any] = {
        "checkpoint_every": STEPS_PER_PASS,
        "run": {"name": name},
        "trainer": {"max_steps": -1} | changes.pop("trainer", {}),
        "predictions": {"prompts_per_step": 8, "num_passes": 1} | changes.pop("predictions", {}),
    }
    init_args = {"model": str(model), "optimizer": {"learning_rate": 2e-3}} | changes.pop("init_args", {})
    kind = changes.pop("kind", "WorldModelGRPO")
    settings["model"] = {"class_path": f"rwml_lightning.modules.{kind}", "init_args": init_args}
    config = write_config(folder, model, **settings | changes)
    main(["fit", "--config", str(config), *arguments])
    return folder / "runs" / name


def recorded(run_folder: Path, metric: str) -> dict[int, float]:
    """A metric of training by its step."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): float(r["value"]) for r in csv.DictReader(file) if r["name"] == metric}


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "export" / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def one_pass(tiny_model: Path, tmp_path: Path) -> Path:
    """Checkpoint of the last step of a run of one pass."""
    checkpoint = run(tmp_path, tiny_model, "one") / "checkpoints" / f"step-{STEPS_PER_PASS}.ckpt"
    assert checkpoint.is_file()
    return checkpoint


def test_more_passes_train_the_steps_that_are_missing(
    one_pass: Path, tiny_model: Path, tmp_path: Path
) -> None:
    whole = run(tmp_path, tiny_model, "whole", predictions={"num_passes": 2})
    more = run(tmp_path, tiny_model, "more", "--ckpt_path", str(one_pass), predictions={"num_passes": 2})
    assert list(recorded(more, "train/grad_norm")) == [5, 6, 7, 8]
    assert same(weights(more), weights(whole))
    assert not same(weights(one_pass.parents[1]), weights(whole))


def test_dropout_goes_on_with_the_same_random_numbers(tiny_model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"kind": "WorldModelSFT", "init_args": {"lora": {"rank": 4, "dropout": 0.5}}}
    whole = run(tmp_path, tiny_model, "whole", predictions={"num_passes": 2}, **how)
    one = run(tmp_path, tiny_model, "one", **how) / "checkpoints" / "step-4.ckpt"
    more = run(tmp_path, tiny_model, "more", "--ckpt_path", str(one), predictions={"num_passes": 2}, **how)
    assert recorded(more, "train/loss") == {k: v for k, v in recorded(whole, "train/loss").items() if k > 4}
    assert same(weights(more), weights(whole))


def test_a_run_that_was_killed_after_its_last_step_trains_no_further(
    one_pass: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, tiny_model, "done", "--ckpt_path", str(one_pass))
    assert recorded(done, "train/grad_norm") == {}
    assert same(weights(done), weights(one_pass.parents[1]))


def test_a_run_that_was_stopped_goes_on_from_there(tiny_model: Path, tmp_path: Path) -> None:
    whole = run(tmp_path, tiny_model, "whole")
    stop = {"class_path": "test_resume_settings.Stop"}
    stop["init_args"] = {"step": 2, "trace": str(tmp_path / "runs" / "stopped" / "trace.db")}  # type: ignore[assignment]
    stopped = run(tmp_path, tiny_model, "stopped", trainer={"callbacks": [stop]})
    assert not (stopped / "export").exists()
    assert (stopped / "checkpoints" / "stopped-2.ckpt").is_file()
    again = run(tmp_path, tiny_model, "stopped", trainer={"callbacks": [stop]})
    assert list(recorded(again, "train/grad_norm")) == [1, 2, 3, 4]
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": {"num_transitions": 24}}, "the 24 training items differ from the 32 items of the checkpoint; "
         "they depend on data.predictions.transitions, num_transitions and the EasySampleFilter"),
        ({"predictions": {"prompts_per_step": 4}}, "data.predictions.prompts_per_step is 4, but was 8"),
        ({"seed_everything": 1}, "seed_everything is 1, but was 0"),
    ],
)  # fmt: skip
def test_other_data_is_refused(
    changes: dict[str, Any],
    message: str,
    one_pass: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes.setdefault("predictions", {})["num_passes"] = 2
    with pytest.raises(SystemExit):
        run(tmp_path, tiny_model, "other", "--ckpt_path", str(one_pass), **changes)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_same_names_with_other_texts_are_other_data(
    one_pass: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    write_transitions(
        tmp_path / "t.parquet", [replace(world[0], next_state="You drop the apple."), *world[1:]]
    )
    config = make_config(tmp_path, tiny_model, predictions={"prompts_per_step": 8, "num_passes": 2})
    message = error_of(["fit", "--config", str(config), "--ckpt_path", str(one_pass)], capsys)
    assert "the 32 training items differ from the 32 items of the checkpoint" in message


def test_fewer_passes_than_were_trained_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = run(tmp_path, tiny_model, "two", predictions={"num_passes": 2}) / "checkpoints" / "step-8.ckpt"
    with pytest.raises(SystemExit):
        run(tmp_path, tiny_model, "less", "--ckpt_path", str(two), predictions={"num_passes": 1})
    assert (
        "data.predictions.num_passes is 1, so training ends after batch 4, but the checkpoint was saved after batch 8"
        in capsys.readouterr().err
    )


def test_learning_rate_and_schedule_are_the_configs(one_pass: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The checkpoint's run had 2e-3 throughout; this one falls to 0 at step 8."""
    changed = {"optimizer": {"learning_rate": 1e-3, "schedule": "linear", "weight_decay": 0.5}}
    more = run(
        tmp_path,
        tiny_model,
        "more",
        "--ckpt_path",
        str(one_pass),
        predictions={"num_passes": 2},
        init_args=changed,
    )
    assert recorded(more, "train/learning_rate") == pytest.approx(
        {5: 4e-3 / 8, 6: 3e-3 / 8, 7: 2e-3 / 8, 8: 1e-3 / 8}
    )
    saved = torch.load(more / "checkpoints" / "step-8.ckpt", weights_only=True)["optimizer_states"][0]
    assert saved["param_groups"][0]["weight_decay"] == 0.5
    assert {float(s["step"]) for s in saved["state"].values()} == {8.0}  # moments went on


def test_several_steps_a_batch_are_counted_one_by_one(tiny_model: Path, tmp_path: Path) -> None:
    """12 steps, 3 a batch: a checkpoint where a multiple of 5 was passed; the newest is kept."""
    several = run(
        tmp_path, tiny_model, "several", init_args={"grpo": {"num_iterations": 3}}, checkpoint_every=5
    )
    assert list(recorded(several, "train/grad_norm")) == [3, 6, 9, 12]
    assert [file.name for file in (several / "checkpoints").iterdir()] == ["step-12.ckpt"]


def test_max_steps_ends_within_a_batch(tiny_model: Path, tmp_path: Path) -> None:
    cut = run(
        tmp_path, tiny_model, "cut", trainer={"max_steps": 4}, checkpoint_every=4,
        init_args={"grpo": {"num_iterations": 3}, "optimizer": {"learning_rate": 2e-3, "schedule": "linear"}},
    )  # fmt: skip
    assert list(recorded(cut, "train/grad_norm")) == [3, 4]
    saved = torch.load(cut / "checkpoints" / "step-4.ckpt", weights_only=True)
    assert {float(s["step"]) for s in saved["optimizer_states"][0]["state"].values()} == {4.0}
