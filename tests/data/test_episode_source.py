"""The source of episodes: which games it plays how, what it labels, and what it has collected first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwml_lightning.data import episodes
from rwml_lightning.data.demonstrations import Demonstrations, write_labels
from rwml_lightning.data.episodes import Episodes, EpisodeSource, GameEvaluation, NextStateLabels
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.envs.alfworld.generated_games import GeneratedGames
from rwml_lightning.episodes.games import Game
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import EpisodeBatch, EpisodeGroup, Label, LabelledBatch, Playthrough, Sampling
from rwml_lightning.seeds import derive_seed
from support.recorder import Recorder
from support.validation import make_game
from support.worlds import ACTION_PROMPT, make_transition

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec(
    "support.environments.RoomsEnv",
    {"games": {"train": ["a", "b", "c"], "validation": ["v", "w"]}, "folder": "x"},
)


def make_source(policy: Any = "policy", spec: EnvironmentSpec = SPEC, **settings: Any) -> Any:
    return EpisodeSource(
        Episodes(ActionPrompt(history_turns=1), Sampling(9, 0.7), **settings), policy, spec, 3
    )


def test_games_are_played_as_the_config_says_in_environments_that_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Recorder(Mark(close=Recorder()))
    made = Recorder(Mark(pool=pool.answer))
    monkeypatch.setattr(episodes, "EnvironmentPool", pool)
    monkeypatch.setattr(episodes, "EpisodePlayer", made)
    source = make_source(
        num_workers=4, step_timeout_s=8.0, success_reward=2.0, invalid_penalty=0.3, max_dropped_share=0.4
    )
    source.close()
    assert pool.calls == []  # nothing is started to be closed
    player = source.player
    assert source.player is player
    assert pool.calls == [(SPEC, 4, 8.0)]
    assert made.calls == [(pool.answer, "policy", ActionPrompt(history_turns=1), 3, 2.0, 0.3)]
    source.close()
    source.close()
    assert pool.answer.close.calls == [()]
    _ = source.player
    assert len(pool.calls) == 2  # it starts anew


def test_a_player_keeps_its_settings() -> None:
    arguments: Any = ("pool", "policy", "prompt", 3)
    plain: Any = EpisodePlayer(*arguments)
    assert (plain.success_reward, plain.invalid_penalty) == (1.0, 0.0)
    own: Any = EpisodePlayer(*arguments, 2.0, 0.5)
    assert (own.pool, own.policy, own.prompt, own.seed) == arguments
    assert (own.success_reward, own.invalid_penalty) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("stage", "test", "splits", "num_games", "key"),
    [
        ("fit", None, ["validation"], 2, "data.episodes.validation"),
        ("validate", GameEvaluation(["train"], 7), ["validation"], 2, "data.episodes.validation"),
        ("test", None, ["validation"], None, "data.episodes.validation"),
        ("test", GameEvaluation(["train"], 7), ["train"], 7, "data.episodes.test"),
    ],
)
def test_which_games_a_stage_lists(
    monkeypatch: pytest.MonkeyPatch, stage: str, test: Any, splits: Any, num_games: Any, key: str
) -> None:
    listed = Recorder(["games"])
    monkeypatch.setattr(episodes, "draw_games", listed)
    how = GameEvaluation(["validation"], 2, max_turns=4)
    source = make_source(validation=how, test=test, splits=["train"], num_games=5)
    source.set_up(stage)
    training = [(SPEC, ["train"], 5, 3, False, "data.episodes")] if stage == "fit" else []
    assert listed.calls == [*training, (SPEC, splits, num_games, 3, True, key)]
    assert source.train == (["games"] if stage == "fit" else [])
    assert source.validation == ["games"]
    assert source.evaluation == (how if stage != "test" else test or replace(how, num_games=None))


def test_a_test_plays_all_held_out_games_in_its_own_way() -> None:
    own = GameEvaluation(
        num_games=1, episodes_per_game=4, max_turns=6, temperature=0.9, batch_size=5, top_p=0.8
    )
    source = make_source(validation=GameEvaluation(num_games=1, episodes_per_game=2), test=own)
    source.player = Mark(collect=Recorder(EpisodeBatch(0, 0, ())))
    source.set_up("validate")
    assert (len(source.validation), source.held_out().batch_size) == (1, 64)
    source.held_out().make(0, ["g"])
    source.set_up("test")
    draw = source.held_out()
    assert (draw.items, draw.batch_size, draw.num_passes) == (source.validation, 5, 1)
    draw.make(2, ["g"])
    assert source.player.collect.calls == [
        ("validation", 0, ["g"], 2, Sampling(9, 0.4, 1.0), 30),
        ("validation", 2, ["g"], 4, Sampling(9, 0.9, 0.8), 6),
    ]
    whole = make_source(validation=GameEvaluation(num_games=1))
    whole.set_up("test")
    assert sorted(game.task for game in whole.validation) == ["v", "w"]


def test_games_to_learn_from_get_the_steps_seed() -> None:
    source = make_source(games_per_step=2, group_size=2, max_turns=6, num_passes=5)
    source.player = Mark(collect=Recorder(EpisodeBatch(7, 1, ())))
    source.train = [Game("a", 5, "s"), Game("b", 6, "s")]
    draw = source.training("samples", "policy_grpo")
    assert (draw.items, draw.batch_size, draw.num_passes, draw.in_parts) == (source.train, 2, 5, False)
    assert draw.make(7, [Game("a", 5, "s")]) == EpisodeBatch(7, 1, ())  # no labels where none are asked for
    seeded = [Game("a", derive_seed(5, 7), "s")]
    assert source.player.collect.calls == [("policy_grpo", 7, seeded, 2, Sampling(9, 0.7), 6)]


def make_played(*numbers: int) -> tuple[EpisodeGroup, ...]:
    """A group of an episode that brought these transitions, each longer than the one before."""
    group = make_game(0, True)
    (member,) = group.members
    transitions = tuple(make_transition(n, next_state="x" * (n + 1)) for n in numbers)
    return (replace(group, members=(Playthrough(member.episode, member.samples, transitions),)),)


def test_played_turns_are_labelled_where_labels_are_asked_for(tiny_chat: ChatFormat) -> None:
    generator: Any = None  # nothing is generated

    def label(context: int | None, count: int) -> list[Label]:
        how = NextStateLabels(count, ACTION_PROMPT)
        source = make_source(PolicyClient(generator, tiny_chat, context), next_state_labels=how)
        source.player = Mark(collect=Recorder(EpisodeBatch(7, 1, make_played(1, 2, 3))))
        draw = source.training("samples", "policy_grpo")
        batch = draw.complete(draw.make(7, []))
        assert batch.groups == make_played(1, 2, 3)
        source.evaluation = GameEvaluation()
        held_out = source.held_out()
        assert held_out.complete(held_out.make(0, [])).labels == ()
        return list(batch.labels)

    whole = label(None, 9)
    order = sorted(("t1", "t2", "t3"), key=lambda name: derive_seed(3, "played", 7, name))
    assert [one.name for one in whole] == order
    assert label(None, 2) == whole[:2]
    for one in whole:
        number = int(one.name[1:])
        assert one.prompt_ids == ACTION_PROMPT.encode(tiny_chat, make_transition(number))
        answer = f"<think></think>\n<next_state>{'x' * (number + 1)}</next_state>"
        assert one.answer_ids == tiny_chat.encode_label(one.prompt_ids, answer)
    lengths = {one.name: len(one.prompt_ids) + len(one.answer_ids) for one in whole}
    for context in sorted({limit for length in lengths.values() for limit in (length - 1, length)}):
        assert [one.name for one in label(context, 9)] == [name for name in order if lengths[name] <= context]


@pytest.mark.parametrize("source", ["expert", "policy", "reflection"])
def test_demonstrations_are_collected_once_where_a_stage_imitates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Any
) -> None:
    collected, generated = Recorder(), Recorder()
    monkeypatch.setattr(episodes, "collect_demonstrations", collected)
    monkeypatch.setattr(GeneratedGames, "generate", lambda self, seed: generated(self, seed))
    wanted = Demonstrations(str(tmp_path / "d.parquet"), source)
    spec = replace(SPEC, games=GeneratedGames("f"), kwargs={**SPEC.kwargs})
    found = make_source(spec=spec, demonstrations=wanted, num_games=2)
    found.player, found._draw_training = "player", lambda: "games"
    assert found.policy_demonstrates is (source != "expert")
    found.prepare("samples")
    assert (collected.calls, generated.calls) == ([], [(GeneratedGames("f"), 3)])
    found.prepare("labels")
    assert collected.calls == [(wanted, "player", "games", 9)]
    (tmp_path / "d.parquet").touch()
    found.prepare("labels")
    assert len(collected.calls) == 1
    assert found.policy_demonstrates is False
    with pytest.raises(ValueError, match=r"data\.episodes\.demonstrations is not set"):
        make_source().prepare("labels")
    assert make_source().policy_demonstrates is False


def test_labels_to_imitate_stay_beside_their_neighbours(tmp_path: Path, tiny_chat: ChatFormat) -> None:
    labels = [Label(f"n{n}", (n,), (n, 0)) for n in range(5)]
    write_labels(tmp_path / "d.parquet", labels, {"tokenizer": fingerprint(tiny_chat)})
    wanted = Demonstrations(str(tmp_path / "d.parquet"), labels_per_step=3)
    source = make_source(Mark(chat=tiny_chat), demonstrations=wanted, num_passes=4)
    draw = source.training("labels", "policy_sft")
    assert (draw.items, draw.batch_size, draw.num_passes, draw.in_parts) == (labels, 3, 4, True)
    assert draw.make(7, labels[1:3]) == LabelledBatch(7, tuple(labels[1:3]))


def test_templates_are_checked_for_the_prompts_that_are_read() -> None:
    acting, predicting = Recorder(), Recorder()
    plain = make_source(Mark(chat="chat"))
    plain.settings = replace(plain.settings, prompt=Mark(check=acting))
    plain.check()
    assert (acting.calls, predicting.calls) == ([("chat",)], [])
    plain.settings = replace(plain.settings, next_state_labels=NextStateLabels(2, Mark(check=predicting)))
    plain.check()
    assert predicting.calls == [("chat",)]


def test_the_probe_is_the_prompt_itself(tiny_chat: ChatFormat) -> None:
    source = make_source(Mark(chat=tiny_chat))
    prompt = ActionPrompt(history_turns=1)
    assert source.probe_ids() == list(tiny_chat.encode_user(prompt.system, prompt.user))


@pytest.mark.parametrize("name", ["games_per_step", "group_size", "max_turns"])
def test_sizes_are_at_least_1(name: str) -> None:
    assert getattr(Episodes(**{name: 1}), name) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^data\.episodes\.{name} is 0; it must be at least 1"):
        Episodes(**{name: 0})  # type: ignore[arg-type]
