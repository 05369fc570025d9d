"""The source of predictions: what it reads, what it makes of a step, and what it measures of what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwml_lightning.data import predictions
from rwml_lightning.data.collection import Collection
from rwml_lightning.data.predictions import Predictions, PredictionSource
from rwml_lightning.data.selection import Validation
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.evaluation import HeldOutBatch, measure_groups
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import LabelledBatch, RolloutBatch, Sampling, Transition
from rwml_lightning.seeds import derive_seed
from support.policies import no_policy
from support.recorder import Recorder
from support.rewards import LetterReward
from support.scripted_generator import Scripted
from support.worlds import ACTION_PROMPT, make_transition

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec("support.environments.RoomsEnv", {"folder": "x"})
WORLD = [make_transition(n, split="validation" if n > 3 else "train") for n in range(8)]
TRAIN, HELD_OUT = WORLD[:4], WORLD[4:]


def make_source(
    policy: Any = "policy", environment: Any = None, seed: int = 0, **settings: Any
) -> PredictionSource:
    settings = {"transitions": "t.parquet", "reward": LetterReward(), "prompt": ACTION_PROMPT, **settings}
    return PredictionSource(Predictions(**settings), policy, environment, seed)


def make_policy(chat: ChatFormat, context: int | None = None) -> tuple[PolicyClient, Scripted]:
    """A policy that predicts the state of room 5, whatever it reads."""
    generator = Scripted(chat.tokenizer, lambda *_: "<next_state>You stand at door 5.</next_state>")  # type: ignore[arg-type]
    return PolicyClient(generator, chat, context), generator  # type: ignore[arg-type]


def test_predictions_are_made_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recorder(Mark(collect=Recorder(RolloutBatch(4, 0, ()))))
    monkeypatch.setattr(predictions, "WorldModelRollouts", made)
    evaluator, prompt = LetterReward(), WorldModelPrompt(history_turns=0)
    source = make_source(
        seed=6, evaluator=evaluator, max_dropped_share=0.4, prompt=prompt, sampling=Sampling(9, 0.7), group_size=2,
        prompts_per_step=3, num_passes=5, validation=Validation(None, 3, 0.4, 5, 0.9),
    )  # fmt: skip
    source.train, source.validation = TRAIN, HELD_OUT
    training, held_out = source.training("samples", "wm_x"), source.held_out()
    assert (training.items, training.batch_size, training.num_passes, training.in_parts) == (
        TRAIN,
        3,
        5,
        False,
    )
    assert (held_out.items, held_out.batch_size, held_out.num_passes) == (HELD_OUT, 5, 1)
    assert training.make(4, TRAIN[:2]) == RolloutBatch(4, 0, ())
    assert held_out.make(7, HELD_OUT[1:]) == HeldOutBatch((), (), ())
    assert made.answer.collect.calls == [
        ("wm_x", 4, TRAIN[:2], 2, Sampling(9, 0.7)),
        ("validation", 7, HELD_OUT[1:], 3, Sampling(9, 0.4, 0.9)),
    ]
    assert made.calls == [
        ("policy", reward, prompt, 6, None) for reward in (source.settings.reward, evaluator)
    ]


def test_a_control_takes_the_place_of_the_reward_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    control, made = Recorder("control"), Recorder()
    monkeypatch.setattr(predictions, "Control", control)
    monkeypatch.setattr(predictions, "WorldModelRollouts", made)
    source = make_source(control="coin", seed=4)
    source.train = TRAIN
    source.keep_only(["t1"])
    source.training("samples", "wm_x")
    source.held_out()
    source.training("labels", "wm_x")
    assert control.calls == [("coin", 4, TRAIN)]  # it sees all training transitions
    assert [call[-1] for call in made.calls] == ["control", None]


def test_held_out_predictions_are_measured_by_the_evaluator(tiny_chat: ChatFormat) -> None:
    policy, _ = make_policy(tiny_chat)
    evaluator = LetterReward(tau_d=1e-6)
    source = make_source(
        policy, reward=LetterReward(tau_d=2.0), evaluator=evaluator, validation=Validation(group_size=2)
    )
    source.validation = HELD_OUT
    batch = source.held_out().make(0, HELD_OUT)
    assert [group.transition for group in batch.groups] == HELD_OUT
    assert [measured.values["accuracy"] for measured in batch.measured] == [
        0.0,
        1.0,
        0.0,
        0.0,
    ]  # but one is room 5
    assert batch.measured == tuple(measure_groups(batch.groups, evaluator))
    assert [measured.count for measured in batch.measured] == [2] * 4


class Scores(LetterReward):
    """Keeps what it was asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[tuple[str, str | None]] = []

    def score(self, transitions: Sequence[Transition], predicted: Sequence[str | None]) -> Any:
        self.scored += [(t.transition_id, text) for t, text in zip(transitions, predicted, strict=True)]
        return super().score(transitions, predicted)


def test_floors_know_what_is_trained_on_and_are_measured_once(tiny_chat: ChatFormat) -> None:
    policy, _ = make_policy(tiny_chat)
    evaluator = Scores()
    source = make_source(policy, evaluator=evaluator)
    source.train, source.validation = [replace(TRAIN[0], next_state="It is dark.")], HELD_OUT
    make = source.held_out().make
    first = make(0, HELD_OUT[:2])
    for transition, row in zip(HELD_OUT, first.floors, strict=False):
        assert {name: one.transition_id for name, one in row.items()} == dict.fromkeys(
            ("copy_observation", "most_common"), transition.transition_id
        )
    predicted = [(name, "You stand at door 5.") for name in ("t4", "t5")]
    copied = [("t4", "You are in room 4."), ("t5", "You are in room 5.")]
    assert evaluator.scored == [*predicted, *copied, ("t4", "It is dark."), ("t5", "It is dark.")]
    evaluator.scored.clear()
    again = source.held_out().make(1, HELD_OUT[1:3])  # of the next validation too
    assert again.floors[0] is first.floors[1]
    door = "You stand at door 5."
    assert evaluator.scored == [
        ("t5", door),
        ("t6", door),
        ("t6", "You are in room 6."),
        ("t6", "It is dark."),
    ]


def test_labels_are_made_with_prompt_and_chat(tiny_chat: ChatFormat) -> None:
    policy, _ = make_policy(tiny_chat)
    source = make_source(policy, reward=None, prompts_per_step=3, num_passes=4)  # labels need no reward
    source.train = TRAIN
    draw = source.training("labels", "wm_sft")
    assert (draw.items, draw.batch_size, draw.num_passes) == (TRAIN, 3, 4)
    batch = draw.make(5, TRAIN[1::2])
    assert isinstance(batch, LabelledBatch)
    assert (batch.step, [label.name for label in batch.labels]) == (5, ["t1", "t3"])
    for label, transition in zip(batch.labels, TRAIN[1::2], strict=True):
        assert label.prompt_ids == ACTION_PROMPT.encode(tiny_chat, transition)
        answer = f"<think></think>\n<next_state>{transition.next_state}</next_state>"
        assert label.answer_ids == tiny_chat.encode_label(label.prompt_ids, answer)


def test_the_probe_is_held_out_where_something_is(tiny_chat: ChatFormat) -> None:
    source = make_source(make_policy(tiny_chat)[0])
    source.train, source.validation = TRAIN, HELD_OUT
    for known in (HELD_OUT, TRAIN):
        (label,) = source._label(0, known[:1]).labels
        assert source.probe_ids() == [*label.answer_ids, *label.prompt_ids]
        source.validation = []
    source.train = []
    assert source.probe_ids() == []


def test_only_some_transitions_are_trained_on() -> None:
    source = make_source()
    source.train = TRAIN
    source.keep_only(iter(["t1", "t3", "elsewhere"]))
    for learns in ("samples", "labels"):
        assert source.training(learns, "wm_x").items == [TRAIN[1], TRAIN[3]]  # type: ignore[arg-type]
    assert source.train == TRAIN
    source.keep_only([])
    assert source.training("labels", "wm_x").items == []


def test_the_file_is_read_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    read, fitting = Recorder(WORLD), Recorder([TRAIN[0]])
    monkeypatch.setattr(predictions, "read_transitions", read)
    monkeypatch.setattr(predictions, "select_fitting", fitting)
    source = make_source(
        seed=5, on_broken="skip", num_transitions=2, validation=Validation(3), sampling=Sampling(9)
    )
    source.set_up("fit")
    assert read.calls == [(Path("t.parquet"), "skip")]
    for call, own, count in zip(fitting.calls, (TRAIN, HELD_OUT), (2, 3), strict=True):
        drawn = sorted(own, key=lambda t: derive_seed(5, "draw", t.transition_id))[:count]
        assert call == (Path("t.parquet"), drawn, ACTION_PROMPT, "policy", 9, "skip")
    assert (source.train, source.validation) == ([TRAIN[0]], [TRAIN[0]])
    source.whole_validation_split()
    assert len(fitting.calls[-1][1]) == 4
    assert read.calls == [(Path("t.parquet"), "skip")] * 2
    source.set_up("validate")  # what was read is not read again
    assert len(read.calls) == 2


def test_a_file_without_training_transitions_can_be_evaluated_alone(
    tmp_path: Path, tiny_chat: ChatFormat
) -> None:
    path = tmp_path / "t.parquet"
    write_transitions(path, HELD_OUT)
    source = make_source(make_policy(tiny_chat, 400)[0], transitions=str(path), sampling=Sampling(9))
    with pytest.raises(ValueError, match=r"t\.parquet holds no training transitions$"):
        source.set_up("fit")
    source.set_up("validate")
    assert (source.train, {t.transition_id for t in source.validation}) == ([], {"t4", "t5", "t6", "t7"})


def test_a_file_that_is_missing_is_collected_and_one_that_is_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = Recorder()
    monkeypatch.setattr(predictions, "collect", collected)
    wanted, path = Collection("random"), tmp_path / "t.parquet"
    record: Any = Recorder()
    settings = Predictions(str(path), collection=wanted)
    source = PredictionSource(settings, "policy", SPEC, 6, record)  # type: ignore[arg-type]
    source.prepare("samples")
    ((*head, policy, told),) = collected.calls
    assert head == [path, SPEC, wanted, 6]
    assert (policy(), told) == ("policy", record)
    path.touch()
    source.prepare("labels")
    assert len(collected.calls) == 1
    for environment, how in ((None, settings), (SPEC, Predictions(str(path)))):
        with pytest.raises(
            ValueError, match=r"t\.parquet, which does not exist; set data\.environment and data\.pred"
        ):
            how.collect(environment, 0, no_policy)


def test_a_template_is_checked_for_the_prompt() -> None:
    checked = Recorder()
    prompt = Mark(check=checked)
    make_source(Mark(chat="chat"), prompt=prompt).check()
    assert checked.calls == [("chat",)]


def test_what_scores_predictions_is_missing_by_name() -> None:
    reward, evaluator = LetterReward(), LetterReward()
    assert Predictions("t", reward).need_evaluator() is reward
    assert Predictions("t", reward, evaluator=evaluator).need_evaluator() is evaluator
    assert Predictions("t", evaluator=evaluator).need_evaluator() is evaluator
    for needed in (Predictions("t").need_evaluator, Predictions("t", evaluator=evaluator).need_reward):
        with pytest.raises(ValueError, match=r"^data\.predictions\.reward is not set"):
            needed()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_may_be_dropped(share: float) -> None:
    assert Predictions("t", max_dropped_share=share).max_dropped_share == share


def test_a_group_without_a_verdict_has_no_row_of_what_is_held_out(tiny_chat: ChatFormat) -> None:
    class Silent(LetterReward):
        def score(self, transitions: Sequence[Transition], predicted: Sequence[str | None]) -> Any:
            scores: list[Any] = super().score(transitions, predicted)
            return [None if t.transition_id == "t5" else s for t, s in zip(transitions, scores, strict=True)]

    source = make_source(make_policy(tiny_chat)[0], evaluator=Silent())
    batch = source.held_out().make(0, HELD_OUT)
    names = ["t4", "t6", "t7"]
    assert [group.transition.transition_id for group in batch.groups] == names
    assert [one.transition_id for one in batch.measured] == names
    assert [row["copy_observation"].transition_id for row in batch.floors] == names
