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
from rwml_lightning.data.batches import Label, LabelledBatch
from rwml_lightning.data.chat_format import ChatFormat, fingerprint
from rwml_lightning.data.collection import Collection
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.demonstrations import Demonstrations, write_labels
from rwml_lightning.data.games import Play, PlayEvaluation
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


class Source(Recorder):
    """Stands for the source of games."""

    train, held_out = list("abc"), list("vwxyz")
    evaluation = PlayEvaluation(batch_size=3)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments)) or name


def make_acting(reads: str, **settings: Any) -> Any:
    data = make_data(**settings)
    data.module.reads = reads
    data.__dict__.update(chat="chat", game_source=Source())
    return data


def test_games_are_played_by_this_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "context_tokens", lambda _: 40)
    data = make_acting("episodes", play=Play(games_per_step=2), num_passes=3, seed=5)
    loader = data.train_dataloader()
    assert (loader.items, loader.batch_size, loader.seed, loader.num_passes) == (list("abc"), 2, 5, 3)
    assert loader.make(4, list("cab")) == "rollout"
    (held_out,) = data.val_dataloader()
    assert (held_out.batch_size, held_out.seed) == (3, None)
    assert list(held_out) == ["rollout_held_out"] * 2
    player = ("player", data.generator, "chat", 40)
    assert data.game_source.calls == [
        player, ("rollout", "player", "wm_x", 4, ["a"]),
        player, ("rollout_held_out", "player", 0, ["w"]), player, ("rollout_held_out", "player", 1, ["z"]),
    ]  # fmt: skip


def test_what_is_held_out_of_the_transitions_is_predicted_beside_the_games(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = [make_transition(n, split="validation") for n in range(4)]
    read = Recorder(world)
    monkeypatch.setattr(datamodule, "read_transitions", read)
    monkeypatch.setattr(datamodule, "context_tokens", lambda _: None)
    data = make_acting("episodes", play=Play(probe=Validation(3, batch_size=2)), seed=5, on_broken="skip")
    data.generator.max_model_len = None
    data.setup("fit")
    assert read.calls == [(Path("t.parquet"), "skip")]
    assert data.game_source.calls == [("set_up", "fit")]
    assert len(data.validation_transitions) == 3
    games, predictions = data.val_dataloader()
    assert (games.items, predictions.items, predictions.batch_size) == (
        list("vwxyz"),
        data.validation_transitions,
        2,
    )
    world.clear()
    with pytest.raises(ValueError, match=r"t\.parquet holds no validation transitions for data\.play\.probe"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("source", "init_from", "sent"), [("expert", "w", False), ("policy", None, False), ("policy", "w", True)]
)
def test_demonstrations_are_collected_once_by_the_weights_that_learn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Any, init_from: str | None, sent: bool
) -> None:
    collected, check = Recorder(), Recorder()
    monkeypatch.setattr(datamodule, "collect_demonstrations", collected)
    monkeypatch.setattr(datamodule, "WeightCheck", lambda: Mark(update=check))
    monkeypatch.setattr(datamodule, "context_tokens", lambda _: 40)
    wanted = Demonstrations(str(tmp_path / "d.parquet"), source)
    data = make_acting("actions", demonstrations=wanted, play=Play(sampling=Sampling(9)))
    data.module.init_from, data.module.configure_model, data.probe_ids = init_from, Recorder(), lambda: [1]
    data.prepare_data()
    assert data.module.configure_model.calls == [()] * sent
    assert check.calls == [(data.generator, data.module, 0, [1])] * sent
    assert data.game_source.calls == [
        ("prepare",),
        ("player", data.generator, "chat", 40),
        ("list_training",),
    ]
    assert collected.calls == [(wanted, "player", "list_training", 9)]
    (tmp_path / "d.parquet").touch()
    data.prepare_data()
    assert len(collected.calls) == 1
    with pytest.raises(ValueError, match=r"data\.demonstrations is not set"):
        make_acting("actions").prepare_data()


def test_labels_to_imitate_come_in_parts_of_a_step(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = ChatFormat(tiny_tokenizer)
    labels = [Label(f"n{n}", (n,), (n, 0)) for n in range(5)]
    write_labels(tmp_path / "d.parquet", labels, {"tokenizer": fingerprint(chat)})
    data = make_acting(
        "actions", demonstrations=Demonstrations(str(tmp_path / "d.parquet")), prompts_per_step=3
    )
    data.__dict__["chat"] = chat
    loader = data.train_dataloader()
    assert (loader.items, loader.batch_size) == ([labels[:3], labels[3:]], 1)
    assert loader.make(7, [labels[:3]]) == LabelledBatch(7, (labels[1],))  # this rank's share
    with data.as_labels(4, 2, 1):
        assert data.train_dataloader().items == [labels[:2], labels[2:4]]


def test_only_some_transitions_are_trained_on_in_rollouts_or_labels() -> None:
    data = make_data(prompts_per_step=3)
    data.train_transitions = [make_transition(n) for n in range(5)]
    loader = data.train_dataloader()
    assert (loader.items, loader.batch_size, loader.make) == (data.train_transitions, 3, data._rollout)
    data.keep_only(iter(["t1", "t3"]))
    data.module.on_policy = False
    loader = data.train_dataloader()
    assert (loader.items, loader.make) == ([data.train_transitions[n] for n in (1, 3)], data._label)
    assert data.state_dict() == loader.state_dict()
    assert len(data.train_transitions) == 5


def test_a_resumed_loader_goes_on_where_it_was_if_it_reads_the_same() -> None:
    data = make_data(prompts_per_step=2, seed=3, num_passes=2)
    data.train_transitions = [make_transition(n) for n in range(5)]
    assert data.state_dict() == {}
    state = {**data.train_dataloader().state_dict(), "step": 2}
    assert state.keys() == {"step", "seed", "batch_size", "num_items", "items"}
    assert (state["seed"], state["batch_size"], state["num_items"]) == (3, 2, 5)
    data.load_state_dict(state)
    assert (data.train_dataloader().step, data.train_dataloader().first_step) == (2, 2)
    for changes, message in (
        ({"seed": 4}, r"seed_everything is 3, but was 4 when the checkpoint was saved"),
        ({"batch_size": 1}, r"data\.prompts_per_step is 2, but was 1"),
        (
            {"items": "x", "num_items": 6},
            r"draws from 5 items that are not the 6 of .*data\.transitions, data\.num_transitions and",
        ),
        (
            {"step": 7},
            r"data\.num_passes is 2, which ends after batch 6, but the checkpoint was saved after batch 7",
        ),
    ):
        data.load_state_dict({**state, **changes})
        with pytest.raises(ValueError, match=message):
            data.train_dataloader()
    data.load_state_dict({**state, "step": 6})
    assert list(data.train_dataloader()) == []


def test_floors_are_scored_by_the_evaluator_with_what_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = LetterReward()
    data = make_data(evaluator=evaluator)
    data.train_transitions = [make_transition(0)]
    monkeypatch.setattr(datamodule, "floors_for", lambda *arguments: arguments)
    monkeypatch.setattr(datamodule, "evaluate_floors", lambda *arguments: arguments)
    monkeypatch.setattr(datamodule, "measure_groups", lambda *arguments: arguments)
    held_out = [make_transition(1)]
    assert data.evaluate_floors(held_out) == (held_out, evaluator, (held_out, data.train_transitions))
    assert data.measure(["g"]) == (["g"], evaluator)


def test_a_control_sees_all_training_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    control, made = Recorder("control"), Recorder()
    monkeypatch.setattr(datamodule, "Control", control)
    monkeypatch.setattr(datamodule, "WorldModelRollouts", made)
    data = make_data(control="coin", seed=4)
    data.__dict__["chat"] = "chat"
    data.train_transitions = [make_transition(0)]
    assert data.rollouts is data.held_out_rollouts is None
    assert control.calls == [("coin", 4, data.train_transitions)]
    assert [call[-1] for call in made.calls] == ["control", None]


def test_games_come_from_a_source_of_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recorder("source")
    monkeypatch.setattr(datamodule, "GameSource", made)
    play, games = Play(games_per_step=3), GeneratedGames("f")
    data = make_data(play=play, environment=SPEC, games=games, seed=6, max_dropped_share=0.4)
    assert data.game_source == "source"
    assert data.game_source == "source"
    assert made.calls == [(play, SPEC, games, 6, 0.4)]  # once
    with pytest.raises(
        ValueError, match=r"^data\.environment is not set, so the policy has nothing to act in$"
    ):
        _ = make_data(play=play, games=games).game_source


def test_what_was_opened_is_closed() -> None:
    data = make_acting("episodes")
    data.generator.close = Recorder()
    data.close()
    assert data.generator.close.calls == [()]
    assert data.game_source.calls == [("close",)]
    alone = make_data()
    alone.generator.close = Recorder()
    alone.close()
    assert "game_source" not in alone.__dict__


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_may_be_dropped(share: float) -> None:
    assert make_data(max_dropped_share=share).max_dropped_share == share
