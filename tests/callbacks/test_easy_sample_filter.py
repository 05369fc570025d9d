"""The easy-sample filter around the real trainer on a tiny model: what it decides, repeats, and leaves alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from rwml_callbacks import EasySampleFilter, TraceRecorder, WeightSync
from rwml_callbacks.easy_samples import filter as easy_sample_filter
from rwml_callbacks.easy_samples.marks import calibrate, mean_rewards

from rwml_lightning.cli import main
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.trace import TraceReader
from support.easy_samples import columns, make_data, make_filter
from support.rewards import LetterReward
from support.runs import write_config
from support.training import Steps, make
from support.worlds import make_world

NUM_TRAIN = 32


def fit(
    folder: Path,
    model: Path,
    *callbacks: L.Callback,
    logger: Any = False,
    ckpt_path: Path | None = None,
    **data: Any,
) -> tuple[L.Trainer, Steps]:
    steps = Steps()
    trainer = L.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), num_sanity_val_steps=0,
        max_epochs=1, limit_val_batches=0,
        callbacks=[*callbacks, WeightSync(), steps],
    )  # fmt: skip
    module = make(WorldModelGRPO, model=str(model), learning_rate=5e-3)
    trainer.fit(module, make_data(folder, **data), ckpt_path=ckpt_path, weights_only=True)
    return trainer, steps


def trained_on(steps: Steps) -> list[str]:
    return [group.transition.transition_id for out in steps.outputs for group in out["batch"].groups]


@pytest.fixture(scope="module")
def filtered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run with the filter, and what it left behind."""
    folder = tmp_path_factory.mktemp("filtered")
    recorder = TraceRecorder(folder / "trace.db")
    trainer, steps = fit(folder, tiny_model, make_filter(), recorder)
    return {"folder": folder, "trainer": trainer, "steps": steps}


def test_the_result_lies_in_the_file_and_training_goes_by_it(filtered: dict[str, Any]) -> None:
    found = columns(filtered["folder"])
    held_out = {t.transition_id for t in make_world() if t.split == "validation"}
    assert all(found[name] == (None, None) for name in held_out)
    judged = {name: value for name, value in found.items() if name not in held_out}
    assert len(judged) == NUM_TRAIN
    assert all(reward in (0, 0.25, 0.5, 0.75, 1) for reward, _ in judged.values())
    tau_easy = calibrate([reward for reward, _ in judged.values() if reward is not None], 0.3)
    easy = {name for name, (reward, _) in judged.items() if reward >= tau_easy}  # type: ignore[operator]
    gone = {name for name, (_, kept) in judged.items() if not kept}
    assert gone <= easy
    assert 2 <= len(gone) <= len(easy) <= NUM_TRAIN // 2
    assert sorted(trained_on(filtered["steps"])) == sorted(judged.keys() - gone)
    assert [file.name for file in filtered["folder"].glob("[!.]*parquet*")] == ["t.parquet"]


def test_the_run_store_holds_the_histogram(filtered: dict[str, Any]) -> None:
    with TraceReader(filtered["folder"] / "trace.db") as reader:
        (evaluation,) = (e for e in reader.evaluations() if e.name == "easy_samples")
    result = evaluation.result
    assert sum(result["histogram"]) == result["filter/judged"] == NUM_TRAIN
    assert 0 < result["filter/easy_kept"] + result["filter/easy"] < NUM_TRAIN
    assert result["throughput/filter_tokens_per_s"] > 0
    assert 0 < result["filter/generator_share_of_time"] <= 1


@pytest.mark.heavy
def test_the_model_being_trained_is_left_untouched(
    filtered: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, bit by bit, whether the filter has run in this process or its result was there."""
    monkeypatch.setattr(EasySampleFilter, "_predict", None)  # would raise
    again, steps = fit(filtered["folder"], tiny_model, make_filter())
    assert trained_on(steps) == trained_on(filtered["steps"])
    theirs = filtered["trainer"].lightning_module.policy.state_dict()
    ours = again.lightning_module.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.heavy
def test_weights_and_randomness_are_as_before(tiny_model: Path, tmp_path: Path) -> None:
    model, data = WorldModelGRPO(model=str(tiny_model)), make_data(tmp_path)
    model.configure_model()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    make_filter().prepare_run(
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), model, data
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert data.generator._module is None  # the copy is gone


@pytest.mark.heavy
def test_other_decisions_need_no_new_predictions(
    filtered: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes((filtered["folder"] / "t.parquet").read_bytes())
    monkeypatch.setattr(EasySampleFilter, "_predict", None)
    _, steps = fit(tmp_path, tiny_model, make_filter(tau_easy=0.01, keep_probability=0.5))
    found = columns(tmp_path)
    assert {n: r for n, (r, _) in found.items()} == {
        n: r for n, (r, _) in columns(filtered["folder"]).items()
    }
    assert {n for n, (r, kept) in found.items() if r == 0 and not kept} == set()
    assert sorted(trained_on(steps)) == sorted(name for name, (_, kept) in found.items() if kept)


@pytest.mark.heavy
@pytest.mark.parametrize("change", [{"num_samples": 2}, {"tau_d": 0.2}, {"seed": 1}])
def test_other_predictions_are_made_anew(
    filtered: dict[str, Any], tiny_model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "t.parquet").write_bytes((filtered["folder"] / "t.parquet").read_bytes())
    fit(tmp_path, tiny_model, make_filter(**change))
    assert columns(tmp_path) != columns(filtered["folder"])


@pytest.mark.heavy
def test_a_run_without_the_filter_reads_past_its_columns(filtered: dict[str, Any], tiny_model: Path) -> None:
    _, steps = fit(filtered["folder"], tiny_model)
    assert len(trained_on(steps)) == NUM_TRAIN


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.heavy
def test_an_interrupted_filter_goes_on_where_it_was(
    filtered: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def count(reward: Any, tau_d: Any, transitions: Any, predictions: Any) -> dict[str, float]:
        if len(batches) == 2:
            raise Killed
        batches.append(len(transitions))
        return mean_rewards(reward, tau_d, transitions, predictions)

    monkeypatch.setattr(easy_sample_filter, "mean_rewards", count)
    with pytest.raises(Killed):
        fit(tmp_path, tiny_model, make_filter())
    (work,) = tmp_path.glob("t.parquet.filter-*")
    assert len(list(work.glob("*.json"))) == 2
    written = (work / "copy" / "model.safetensors").stat().st_mtime_ns
    batches[:] = [0] * 3
    monkeypatch.setattr(easy_sample_filter.shutil, "rmtree", lambda *_, **__: None)
    fit(tmp_path, tiny_model, make_filter())
    assert sum(batches) == NUM_TRAIN - 2 * 8
    assert (work / "copy" / "model.safetensors").stat().st_mtime_ns == written
    assert columns(tmp_path) == columns(filtered["folder"])


@pytest.mark.heavy
def test_a_checkpoint_goes_on_with_the_same_transitions(
    filtered: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(filtered["folder"], tiny_model, make_filter(), keep)
    again, steps = fit(filtered["folder"], tiny_model, make_filter(), ckpt_path=tmp_path / "step=2.ckpt")
    assert trained_on(steps) == trained_on(filtered["steps"])[2 * 8 :]
    theirs = filtered["trainer"].lightning_module.policy.state_dict()
    ours = again.lightning_module.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_shares_the_file_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer, path = (
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False),
        tmp_path / "t.parquet",
    )
    order: list[str] = []

    def run() -> None:
        with easy_sample_filter._alone(trainer, path):
            order.append("second")

    with ThreadPoolExecutor(1) as other:
        with easy_sample_filter._alone(trainer, path):
            waiting = other.submit(run)
            deadline = time.monotonic() + 20
            while "another run filters" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            order.append("first")
        waiting.result(20)
    assert order == ["first", "second"]
    assert f"another run filters {path}; waiting for its result" in caplog.text


@pytest.mark.heavy
def test_what_the_copy_learnt_from_the_training_split_is_not_judged(tiny_model: Path, tmp_path: Path) -> None:
    _, steps = fit(tmp_path, tiny_model, make_filter(train_on="train", train_share=0.25))
    taught = {name for name, (reward, _) in columns(tmp_path).items() if reward is None}
    taught &= {t.transition_id for t in make_world() if t.split == "train"}
    assert len(taught) == NUM_TRAIN // 4
    assert taught <= set(trained_on(steps))


@pytest.mark.heavy
def test_a_reward_of_its_own_pays(tiny_model: Path, tmp_path: Path) -> None:
    fit(tmp_path, tiny_model, make_filter(reward=LetterReward(mode="cosine")))
    rewards = [reward for reward, _ in columns(tmp_path).values() if reward is not None]
    assert any(reward * 4 != round(reward * 4) for reward in rewards)


@pytest.mark.heavy
def test_nothing_easy_stops_with_the_histogram_and_keeps_the_predictions(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = TraceRecorder(tmp_path / "trace.db")
    with pytest.raises(ValueError, match=r"no one of 32 .* lower EasySampleFilter's tau_easy"):
        fit(tmp_path, tiny_model, make_filter(tau_easy=1.5), recorder)
    printed = capsys.readouterr().err
    assert "0.9 #" in printed
    with TraceReader(tmp_path / "trace.db") as reader:
        assert reader.run().status == "failed"
    assert len(list(tmp_path.glob("t.parquet.filter-*/*.json"))) == 4


@pytest.mark.heavy
def test_fewer_transitions_than_a_batch_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    message = r"t\.parquet: 32 training transitions are there, fewer than one batch \(data\.predictions\.prompts_per_step is 33\)"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, tiny_model, make_filter(), prompts_per_step=33)
    message = r"\d\d training transitions remain after the easy-sample filter, fewer than one batch"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, tiny_model, make_filter(keep_probability=0.0), prompts_per_step=32)


def test_without_a_validation_split_the_setting_is_named(tiny_model: Path, tmp_path: Path) -> None:
    write_transitions(tmp_path / "t.parquet", [t for t in make_world() if t.split == "train"])
    with pytest.raises(
        ValueError, match=r"has no validation .* set EasySampleFilter's train_on to 'train' and"
    ):
        fit(tmp_path, tiny_model, make_filter())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("target_share", 1.0),
        ("train_share", 0.0),
        ("keep_probability", 1.1),
        ("tau_d", 0.0),
        ("tau_easy", 0.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"EasySampleFilter's {name} is {value}"):
        EasySampleFilter(**{name: value})


@pytest.mark.heavy
def test_weights_and_biases_gets_the_histogram(
    filtered: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    fit(filtered["folder"], tiny_model, make_filter(), logger=logger)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert sum(summary["filter/mean_reward"]["values"]) == summary["filter/judged"] == NUM_TRAIN


@pytest.mark.heavy
def test_the_command_line_filters_between_warm_up_and_training(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    added = (
        "--trainer.callbacks+=rwml_callbacks.EasySampleFilter --trainer.callbacks.num_samples 4 "
        "--trainer.callbacks.tau_d 0.05"
    )
    command = [
        "fit",
        "--config",
        str(write_config(tmp_path, tiny_model, warm_up={"num_transitions": 4, "batch_size": 4})),
        *added.split(),
    ]
    main(command)
    lines = capsys.readouterr().err.splitlines()
    (place,) = (i for i, line in enumerate(lines) if "of 32 training transitions are easy" in line)
    assert any(line.startswith("wm_sft 1/1") for line in lines[:place])
    assert not any(line.startswith("wm_grpo") for line in lines[:place])
    with TraceReader(tmp_path / "runs" / "r" / "trace.db") as reader:
        assert [e.name for e in reader.evaluations()] == ["held_out", "easy_samples", "held_out", "held_out"]
        assert reader.run().status == "finished"
    first = columns(tmp_path)
    monkeypatch.setattr(EasySampleFilter, "_predict", None)
    main([*command, "--run.name", "s"])  # an equal warm-up in another folder: the predictions serve again
    assert columns(tmp_path) == first


def test_something_must_be_left_to_judge() -> None:
    with pytest.raises(ValueError, match=r"EasySampleFilter's train_share is 1\.0; .* below 1"):
        EasySampleFilter(train_on="train")
    assert EasySampleFilter(train_on="train", train_share=0.5).train_share == 0.5


def test_the_copy_may_learn_from_a_share_of_the_validation_split(tmp_path: Path, tiny_model: Path) -> None:
    data, model = make_data(tmp_path), WorldModelGRPO(model=str(tiny_model))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    easy_sample_filter._make_ready(trainer, model, data)
    whole, judged = make_filter()._choose(data)
    half, same = make_filter(train_share=0.5)._choose(data)
    assert (len(whole), len(half), len(judged)) == (8, 4, NUM_TRAIN)
    assert {t.split for t in whole} == {"validation"}
    assert half == whole[:4]
    assert judged == same == data.prediction_source.train


@pytest.mark.heavy
def test_the_command_line_says_a_wrong_setting_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = "--trainer.callbacks+=rwml_callbacks.EasySampleFilter --trainer.callbacks.tau_easy 0"
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--config",
                str(write_config(tmp_path, tiny_model, warm_up={"num_transitions": 4, "batch_size": 4})),
                *added.split(),
            ]
        )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: EasySampleFilter's tau_easy is 0.0, which makes every transition easy: raise it"
    )
