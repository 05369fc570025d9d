"""Rollouts and the DataModule, driven by the real trainer on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rwml_callbacks import RewardLogger, WeightSync
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.labels import label_transitions
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.selection import Validation
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import GRPO, Optimizer, WorldModelGRPO, WorldModelSFT
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards import ExactMatchReward
from rwml_lightning.schema import RolloutBatch, Sampling, Score, Transition
from support.fixtures import one_thread  # noqa: F401
from support.rewards import LetterReward
from support.training import Steps
from support.worlds import ACTION_PROMPT, OBJECTS, make_world


def make_data(folder: Path, **arguments: Any) -> RolloutDataModule:
    write_transitions(folder / "t.parquet", make_world())
    defaults: dict[str, Any] = {
        "prompt": ACTION_PROMPT,
        "sampling": Sampling(20),
        "prompts_per_step": 8,
        "group_size": 4,
        "num_passes": 1,
    }
    generator = arguments.pop("generator", HFGenerator())
    reward = arguments.pop("reward", LetterReward(tau_d=0.05))
    predictions = Predictions(str(folder / "t.parquet"), reward, **{**defaults, **arguments})
    return RolloutDataModule(generator, predictions=predictions)


def make_trainer(*callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 1, "check_val_every_n_epoch": None, "val_check_interval": 10**9, **arguments},
    )


def test_a_sample_depends_on_its_place_alone(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = HFGenerator(str(tiny_model), device="cpu")
    policy = PolicyClient(generator, ChatFormat(tiny_tokenizer))
    rollouts = WorldModelRollouts(policy, LetterReward(), ACTION_PROMPT, seed=0)
    world = make_world()[:4]
    batch = rollouts.collect("wm_grpo", 3, world, 3, Sampling(20, temperature=0.8))
    assert [group.transition for group in batch.groups] == world
    assert [[p.member for p in group.predictions] for group in batch.groups] == [[0, 1, 2]] * 4
    assert (batch.step, batch.policy_version, batch.temperature) == (3, 0, 0.8)
    assert set(batch.seconds) == {"generate", "reward"}

    def texts(found: RolloutBatch) -> list[list[str]]:
        return [[p.text for p in group.predictions] for group in found.groups]

    half = rollouts.collect("wm_grpo", 3, world[2:], 3, Sampling(20, temperature=0.8))
    assert texts(half) == texts(batch)[2:]
    other = [
        rollouts.collect("wm_grpo", 4, world, 3, Sampling(20, temperature=0.8)),
        rollouts.collect("validation", 3, world, 3, Sampling(20, temperature=0.8)),
    ]
    assert texts(batch) != texts(other[0]) != texts(other[1]) != texts(batch)
    for group in batch.groups:
        for p in group.predictions:
            assert p.text == ChatFormat(tiny_tokenizer).decode(p.completion)
            assert p.score.well_formed == (p.next_state is not None)
            assert p.score == rollouts.reward.score([group.transition], [p.next_state])[0]


class NoVerdict(LetterReward):
    """Has no score for the second member of some transitions' groups."""

    def __init__(self, *names: str) -> None:
        super().__init__(tau_d=0.05)
        self.names = names

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        scores = super().score(transitions, predictions)
        names = [transition.transition_id for transition in transitions]
        for name in self.names:
            if name in names:
                scores[names.index(name) + 1] = None
        return scores


def test_a_group_without_a_verdict_is_left_out_and_counted(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    data = make_data(tmp_path, reward=NoVerdict("open-mug"), evaluator=LetterReward())
    make_trainer(WeightSync(), steps).fit(WorldModelGRPO(model=str(tiny_model)), data)
    batches = [output["batch"] for output in steps.outputs]
    assert sorted(len(batch.dropped) for batch in batches) == [0, 0, 0, 1]
    trained = [group.transition.transition_id for batch in batches for group in batch.groups]
    assert len(trained) == 31
    assert "open-mug" not in trained
    assert "1 groups are left out: open-mug: a member has no score" in caplog.text


def test_too_many_groups_without_a_verdict_stop_the_run(tiny_model: Path, tmp_path: Path) -> None:
    names = [t.transition_id for t in make_world()]
    data = make_data(tmp_path, reward=NoVerdict(*names), evaluator=LetterReward())
    message = r"8 of 8 groups were lost, more than data.predictions.max_dropped_share \(0.1\) allows"
    with pytest.raises(ValueError, match=message):
        make_trainer(WeightSync()).fit(WorldModelGRPO(model=str(tiny_model)), data)


def hold_out_what_is_known(folder: Path) -> None:
    """Hold out objects that the tiny model was taught, so that it answers in good form."""
    world = [replace(t, split="validation" if t.game in OBJECTS[:2] else "train") for t in make_world()]
    write_transitions(folder / "t.parquet", world)


@pytest.mark.heavy
def test_an_evaluator_scores_what_is_held_out(tiny_model: Path, tmp_path: Path) -> None:
    module, steps = WorldModelGRPO(model=str(tiny_model)), Steps()
    data = make_data(tmp_path, reward=ExactMatchReward(), evaluator=LetterReward(tau_d=2.0))
    hold_out_what_is_known(tmp_path)
    make_trainer(WeightSync(), steps, val_check_interval=2).fit(module, data)
    everything = module.held_out.results[0]
    assert everything.accuracy == everything.well_formed > 0  # every distance is under 2
    assert {row.accuracy for row in module.held_out.floors} == {1.0}
    held_out = [p.score for group in module.held_out.groups for p in group.predictions if p.next_state]
    assert all("distance" in score.parts for score in held_out)
    trained = [p.score for o in steps.outputs for group in o["batch"].groups for p in group.predictions]
    assert all(score.similarity in (None, 0.0, 1.0) for score in trained)


@pytest.mark.heavy
@pytest.mark.parametrize("control", ["mismatched", "coin", "permuted"])
def test_only_training_sees_a_control(tiny_model: Path, tmp_path: Path, control: Any) -> None:
    def run(name: Any, *callbacks: L.Callback) -> WorldModelGRPO:
        data, module = (
            make_data(tmp_path, control=name),
            WorldModelGRPO(model=str(tiny_model), optimizer=Optimizer(1e-12)),
        )
        hold_out_what_is_known(tmp_path)
        make_trainer(WeightSync(), *callbacks, val_check_interval=4).fit(module, data)
        return module

    steps = Steps()
    controlled, plain = run(control, steps), run("none")
    assert controlled.held_out.results == plain.held_out.results
    assert plain.held_out.results[0].accuracy > 0
    groups = [group for output in steps.outputs for group in output["batch"].groups]
    scores = [p.score for group in groups for p in group.predictions]
    assert sum(score.reward != score.parts["true_reward"] for score in scores) > len(scores) / 20
    last = [p.score.parts["true_reward"] for g in steps.outputs[-1]["batch"].groups for p in g.predictions]
    assert steps.metrics[-1]["wm/true_reward"] == pytest.approx(sum(last) / len(last))
    for group in groups if control == "permuted" else ():
        told = sorted(p.score.reward for p in group.predictions)
        assert told == sorted(p.score.parts["true_reward"] for p in group.predictions)


class Watch(L.Callback):
    """Which version wrote each step's completions, and which the trainer had."""

    def __init__(self) -> None:
        self.versions: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.versions.append((batch.policy_version, trainer.global_step))


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_training_is_on_policy(tiny_model: Path, tmp_path: Path, num_iterations: int) -> None:
    watch = Watch()
    module = WorldModelGRPO(
        model=str(tiny_model), optimizer=Optimizer(1e-2), grpo=GRPO(num_iterations=num_iterations)
    )
    make_trainer(WeightSync(), watch).fit(module, make_data(tmp_path))
    assert watch.versions == [(num_iterations * n, num_iterations * n) for n in range(4)]


def test_without_weight_sync_training_stops(tiny_model: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.generator = HFGenerator(str(tiny_model), device="cpu")
    with pytest.raises(RuntimeError, match="check that the WeightSync callback is in the config"):
        make_trainer().fit(WorldModelGRPO(model=str(tiny_model)), data)


@pytest.mark.heavy
def test_validation_during_training_repeats(tiny_model: Path, tmp_path: Path) -> None:
    counts: list[int] = []

    class Count(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            counts.append(len(pl_module.held_out.groups))

    data = make_data(tmp_path, validation=Validation(batch_size=3))
    module = WorldModelGRPO(model=str(tiny_model))
    trainer = make_trainer(WeightSync(), Count(), val_check_interval=2)
    trainer.fit(module, data)
    assert counts == [8, 8]  # every held-out transition, both times
    floors = {row.name: row for row in module.held_out.floors}
    assert floors.keys() == {"copy_observation", "most_common"}
    assert all(row.count == 8 for row in floors.values())
    assert trainer.callback_metrics["val/well_formed"] == module.held_out.results[0].well_formed


def test_supervised_stages_read_labels(tiny_model: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path)
    steps = Steps()
    module = WorldModelSFT(model=str(tiny_model), optimizer=Optimizer(1e-3))
    with data.limited_to(num_items=10, batch_size=4, num_passes=2):
        trainer = make_trainer(steps)
        trainer.fit(module, data)
    assert trainer.global_step == 6
    data.trainer = trainer
    assert len(data.train_dataloader()) == 4  # all of them again
    tokens = sum(metrics["train/trained_tokens"] for metrics in steps.metrics)
    policy = data.prediction_source.policy
    answers = [
        len(label.answer_ids)
        for label in label_transitions(data.prediction_source.train[:10], ACTION_PROMPT, policy.chat)
    ]
    assert tokens == 2 * sum(answers)


def test_draws_do_not_depend_on_the_order_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    drawn = []
    for number, world in enumerate((make_world(), make_world()[::-1])):
        folder = tmp_path / str(number)
        data = make_data(folder, num_transitions=5, validation=Validation(num_transitions=3))
        write_transitions(folder / "t.parquet", world)
        make_trainer(WeightSync()).validate(WorldModelGRPO(model=str(tiny_model)), data, verbose=False)
        drawn.append(
            [t.transition_id for t in (*data.prediction_source.train, *data.prediction_source.validation)]
        )
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 8


@pytest.mark.heavy
def test_prompts_that_do_not_fit_are_refused_or_left_out_before_training(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(**arguments: Any) -> RolloutDataModule:
        data = make_data(tmp_path, sampling=Sampling(20), **arguments)
        long = replace(make_world()[0], transition_id="long", action="take apple " * 200)
        write_transitions(tmp_path / "t.parquet", [*make_world(), long])
        make_trainer(WeightSync()).fit(WorldModelGRPO(model=str(tiny_model)), data)
        return data

    with pytest.raises(
        ValueError, match=r"1 of 33 prompts are longer than 236 tokens.*example: long\. Lower data"
    ):
        run()
    data = run(on_broken="skip")
    assert len(data.prediction_source.train) == 32
    assert "They are left out" in caplog.text
    with pytest.raises(ValueError, match="33 of 33 prompts are longer than 1 tokens"):
        run(on_broken="skip", generator=HFGenerator(max_model_len=21))


@pytest.mark.parametrize(("name", "value"), [("prompts_per_step", 0), ("group_size", -1)])
def test_sizes_must_be_positive(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.predictions\.{name} is {value}; it must be at least 1"):
        make_data(tmp_path, **{name: value})


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_lies_between_0_and_1(tmp_path: Path, share: float) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.predictions\.max_dropped_share is {share}; it must be between 0 and 1"
    ):
        make_data(tmp_path, max_dropped_share=share)


@pytest.mark.heavy
@pytest.mark.parametrize("at", [2, 4])
def test_a_checkpoint_of_any_step_goes_on_to_the_same_end(tiny_model: Path, tmp_path: Path, at: int) -> None:
    """Also the last one: a run killed while it is evaluated at the end trains no further."""
    arguments: dict[str, Any] = {
        "model": str(tiny_model),
        "optimizer": Optimizer(1e-2, "linear"),
    }
    whole = WorldModelGRPO(**arguments)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(WeightSync(), keep).fit(whole, make_data(tmp_path))
    again, steps = WorldModelGRPO(**arguments), Steps()
    trainer = make_trainer(WeightSync(), steps)
    trainer.fit(again, make_data(tmp_path), ckpt_path=tmp_path / f"step={at}.ckpt", weights_only=True)
    assert len(steps.outputs) == 4 - at
    assert trainer.global_step == 4
    for ours, theirs in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_metrics_of_a_step(tiny_model: Path, tmp_path: Path) -> None:
    logger, steps = RewardLogger(tmp_path / "metrics.csv"), Steps()
    make_trainer(WeightSync(), logger, steps).fit(WorldModelGRPO(model=str(tiny_model)), make_data(tmp_path))
    names = {"wm/reward", "wm/similarity", "wm/format", "wm/zero_variance_groups", "train/grad_norm", "train/entropy",
             "train/importance_ratio", "time/generate", "time/reward", "time/update", "time/sync",
             "throughput/generated_tokens_per_s", "throughput/trained_tokens_per_s"}  # fmt: skip
    assert names <= steps.metrics[-1].keys()
    assert steps.metrics[-1]["train/importance_ratio"] == pytest.approx(
        1, abs=1e-3
    )  # the same weights on both sides
    assert steps.metrics[-1]["train/sync_gap"] < 1e-4
