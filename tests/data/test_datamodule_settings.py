"""Each setting of the DataModule reaches whoever acts on it, off its default and unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_testing import LetterReward, Recorder, make_transition
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data import datamodule
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.collection import Collection
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.generated_games import GeneratedGames
from rwml_lightning.data.prompts import WorldModelPrompt
from rwml_lightning.data.selection import Validation
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.schema import Sampling
from rwml_lightning.seeds import derive_seed

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec(
    "fake_games.RoomsEnv", {"games": {"train": ["a", "b", "c"], "validation": ["v"]}, "folder": "x"}
)


def make_data(**settings: Any) -> Any:
    data = RolloutDataModule(
        "t.parquet", Mark(max_model_len=50, end_token_ids=()), LetterReward(), **settings
    )
    data.trainer = Mark(
        lightning_module=Mark(stage="wm_x", reads="predictions", model="m", on_policy=True),
        global_rank=1,
        world_size=2,
    )
    return data


def test_predictions_are_made_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recorder(Mark(collect=Recorder("batch")))
    monkeypatch.setattr(datamodule, "WorldModelRollouts", made)
    how = Validation(None, 3, 0.4, 5, 0.9)
    evaluator, prompt = LetterReward(), WorldModelPrompt(history_turns=0)
    data = make_data(
        evaluator=evaluator, seed=6, max_dropped_share=0.4, prompt=prompt, sampling=Sampling(9, 0.7), group_size=2, validation=how
    )  # fmt: skip
    data.__dict__["chat"] = "chat"
    data.validation_transitions = [make_transition(n) for n in range(7)]
    (loader,) = data.val_dataloader()
    assert (loader.batch_size, loader.seed, len(loader)) == (5, None, 2)
    assert list(loader) == ["batch", "batch"]
    own = [make_transition(n) for n in range(7)]
    sampling = Sampling(9, 0.4, 0.9)
    rollouts = made.answer.collect
    assert rollouts.calls == [
        ("validation", 0, own[1:5:2], 3, sampling),
        ("validation", 1, own[6:7], 3, sampling),
    ]
    assert data._rollout(4, own) == "batch"
    assert rollouts.calls[-1] == ("wm_x", 4, own[1::2], 2, Sampling(9, 0.7))
    assert made.calls == [
        (data.generator, reward, prompt, "chat", 6, 0.4, None) for reward in (evaluator, data._reward)
    ]


def test_a_collection_is_asked_for_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = Recorder()
    monkeypatch.setattr(datamodule, "collect", collected)
    monkeypatch.setattr(datamodule, "policy_chat", lambda *arguments: ("chat", *arguments))
    monkeypatch.setattr(datamodule, "context_tokens", lambda model: {"m": 40, "n": None}[model])
    wanted = Collection("random")
    data = make_data(
        environment=SPEC, collection=wanted, games=GeneratedGames("f"), seed=6, chat_template_kwargs={"k": 1}
    )
    data.record_episodes = Recorder()
    for model, context in (("m", 40), ("n", 50)):
        module = Mark(model=model)
        data.collect(module)
        *head, chat, limit, record = collected.calls[-1]
        assert head == [Path("t.parquet"), SPEC, GeneratedGames("f"), wanted, 6, data.generator]
        assert (chat(), limit()) == (("chat", module, data.generator, {"k": 1}), context)
        assert record is data.record_episodes
    for missing in ({"environment": None, "collection": wanted}, {"environment": SPEC}):
        with pytest.raises(ValueError, match=r"t\.parquet, which does not exist"):
            make_data(**missing).collect(Mark(model="m"))


def test_labels_are_made_of_this_ranks_share_with_prompt_and_chat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt, chat = WorldModelPrompt(history_turns=0, system="", user="{action}"), ChatFormat(tiny_tokenizer)
    monkeypatch.setattr(datamodule, "context_tokens", lambda _: None)
    data = make_data(prompt=prompt, seed=2)
    data.__dict__["chat"] = chat
    world = [make_transition(n, next_state="x" * (n + 1)) for n in range(4)]
    batch = data._label(5, world)
    assert (batch.step, [label.name for label in batch.labels]) == (5, ["t1", "t3"])
    for label, transition in zip(batch.labels, world[1::2], strict=True):
        assert label.prompt_ids == prompt.encode(chat, transition)
        answer = f"<think></think>\n<next_state>{transition.next_state}</next_state>"
        assert label.answer_ids == chat.encode_label(label.prompt_ids, answer)
    data.validation_transitions, data.train_transitions = world[:1], world[1:2]
    label = data._label(0, [world[1], world[0]]).labels[0]
    assert data.probe_ids() == [*label.answer_ids, *label.prompt_ids]
    data.validation_transitions = []
    label = data._label(0, [world[0], world[1]]).labels[0]
    assert data.probe_ids() == [*label.answer_ids, *label.prompt_ids]
    data.train_transitions = []
    assert data.probe_ids() == list(chat.encode_user(data.play.prompt.system, data.play.prompt.user))
    lengths = [
        len(x.prompt_ids) + len(x.answer_ids)
        for x in data._label(0, [world[0], world[1], world[0], world[2]]).labels
    ]
    played = Mark(
        step=1, groups=[Mark(members=[Mark(transitions=[replace(t, knowable=True) for t in world[1:3]])])]
    )
    assert lengths[0] < lengths[1]
    for context, names in ((lengths[1], {"t1", "t2"}), (lengths[1] - 1, {"t1"}), (lengths[0] - 1, set())):
        data.generator.max_model_len = context
        assert {label.name for label in data.label_played(played, 5)} == names


def test_the_file_is_read_as_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = [make_transition(n, split="validation" if n > 3 else "train") for n in range(8)]
    write_transitions(tmp_path / "t.parquet", world)
    read, fitting = Recorder(world), Recorder(["fit"])
    monkeypatch.setattr(datamodule, "read_transitions", read)
    monkeypatch.setattr(datamodule, "those_that_fit", fitting)
    monkeypatch.setattr(datamodule, "context_tokens", lambda _: 40)
    data = make_data(
        on_broken="skip", num_transitions=2, validation=Validation(3), sampling=Sampling(9), seed=5
    )
    data.__dict__["chat"] = "chat"
    data.setup("fit")
    assert read.calls == [(Path("t.parquet"), "skip")]
    for call, split, count in zip(fitting.calls, ("train", "validation"), (2, 3), strict=True):
        path, drawn, *rest = call
        own = sorted(
            (t for t in world if t.split == split), key=lambda t: derive_seed(5, "draw", t.transition_id)
        )
        assert (path, drawn, rest) == (Path("t.parquet"), own[:count], [data.prompt, "chat", 40, 9, "skip"])
    assert (data.train_transitions, data.validation_transitions) == (["fit"], ["fit"])
    data.whole_validation_split()
    assert len(fitting.calls[-1][1]) == 4
    assert read.calls[-1] == (Path("t.parquet"), "skip")
    data.setup("validate")  # what was read is not read again
    assert len(read.calls) == 2
