"""Collection: what is written, how it goes on, what it does with failures."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data import collection as collecting
from rwml_lightning.data.collection import Collection, collect, list_starts
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.prompts.action import ActionPrompt, parse_action
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Completion, Episode, Sampling, Turn
from rwml_lightning.seeds import derive_seed
from support.policies import no_policy

GAMES = {"train": ["a", "b", "c"], "validation": ["v"]}
RANDOM: dict[str, Any] = {"behaviour": "random", "max_turns": 6, "num_environments": 2, "num_workers": 1}


def make_spec(folder: Path, games: dict[str, list[str]] | None = GAMES) -> EnvironmentSpec:
    return EnvironmentSpec("support.environments.RoomsEnv", {"games": games, "folder": str(folder)})


def run(
    folder: Path,
    games: dict[str, list[str]] | None = GAMES,
    seed: int = 0,
    name: str = "t.parquet",
    **settings: Any,
) -> Path:
    path = folder / name
    collection = Collection(**{**RANDOM, **settings})
    collect(path, make_spec(folder, games), collection, seed, no_policy)
    return path


def test_transitions_are_what_the_environment_answered(tmp_path: Path) -> None:
    transitions = read_transitions(run(tmp_path, episodes_per_game=2, expert_share=1.0))
    assert Counter((t.game, t.split) for t in transitions) == {
        **{(game, "train"): 6 for game in "abc"},
        ("v", "validation"): 6,
    }
    episode = [t for t in transitions if t.transition_id.startswith("a#1/")]
    assert [t.transition_id for t in episode] == ["a#1/0", "a#1/1", "a#1/2"]
    assert [t.action for t in episode] == ["go on"] * 3
    for before, after in pairwise(episode):
        assert before.next_state == after.observation
    assert episode[2].history == tuple(Turn(t.observation, t.action) for t in episode[:2])
    assert episode[0].task == "cross a"
    assert episode[0].kind == "move"
    colours = {t.observation.split("colour ")[1] for t in transitions}
    assert len(colours) > 4  # every episode has a seed of its own


@pytest.mark.heavy
def test_the_same_seed_collects_the_same(tmp_path: Path) -> None:
    names = ["one", "two"]
    first, second = (
        read_transitions(run(tmp_path, name=f"{name}.parquet", num_environments=n))
        for name, n in zip(names, (2, 3), strict=True)
    )
    assert first == second
    assert read_transitions(run(tmp_path, name="three.parquet", seed=1)) != first


def test_invalid_actions_are_marked(tmp_path: Path) -> None:
    transitions = read_transitions(run(tmp_path, invalid_share=0.5, episodes_per_game=4))
    invalid = [t for t in transitions if not t.valid]
    assert invalid
    assert {(t.action, t.next_state) for t in invalid} == {("go back", "Nothing happens.")}


@pytest.mark.heavy
def test_history_is_as_long_as_asked(tmp_path: Path) -> None:
    for turns in (0, 1):
        transitions = read_transitions(run(tmp_path, name=f"{turns}.parquet", history_turns=turns))
        assert max(len(t.history) for t in transitions) == turns


@pytest.mark.heavy
def test_an_interrupted_collection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    whole = read_transitions(run(tmp_path / "whole"))
    played: list[list[str]] = []
    plain = collecting.play_chunk

    def interrupted(pool: Any, starts: Any, *rest: Any) -> Any:
        played.append([start.episode_id for start in starts])
        if len(played) == 2:
            raise KeyboardInterrupt
        return plain(pool, starts, *rest)

    monkeypatch.setattr(collecting, "play_chunk", interrupted)
    (tmp_path / "broken").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    assert not (tmp_path / "broken" / "t.parquet").exists()
    again = read_transitions(run(tmp_path / "broken"))
    assert played[1] == played[2]  # what was finished is not played again
    assert len(played) == 3
    assert again == whole
    assert not list((tmp_path / "broken").glob("*.parts"))


def test_a_complete_file_is_left_alone(tmp_path: Path) -> None:
    path = run(tmp_path)
    before = path.stat().st_mtime_ns
    run(tmp_path, max_turns=2)
    assert path.stat().st_mtime_ns == before
    assert read_metadata(path)["collection"]["max_turns"] == 6


@pytest.mark.parametrize(
    "changes",
    [{"max_turns": 3}, {"seed": 1}, {"games": {"train": ["a", "b", "c", "d"], "validation": ["v"]}}],
)
def test_parts_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "play_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    with pytest.raises(
        ValueError, match=r"t\.parquet\.parts holds the parts of a collection with other settings: remove it"
    ):
        run(tmp_path, **changes)


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if enable_thinking %}...{% endif %}"
)


@pytest.mark.heavy
@pytest.mark.parametrize("change", ["template", "template_kwargs", "end_token_ids", "model", "context"])
def test_parts_of_another_policy_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerBase, change: str
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    def go_on(changed: str = "") -> None:
        tokenizer = copy.copy(tiny_tokenizer)
        generator: Any = ScriptedGenerator(tokenizer, "<action>go on</action>")
        generator.model = "theirs" if changed == "model" else "mine"
        tokenizer.chat_template = TEMPLATE + (" " if changed == "template" else "")
        template_kwargs = {"enable_thinking": changed == "template_kwargs"}
        chat = ChatFormat(tokenizer, template_kwargs, [1, 2] if changed == "end_token_ids" else [2])
        context = 500 if changed == "context" else 600
        collection = Collection(behaviour="model", num_workers=1)
        collect(
            tmp_path / "t.parquet", make_spec(tmp_path), collection, 0,
            lambda: PolicyClient(generator, chat, context),
        )  # fmt: skip

    with monkeypatch.context() as patched:
        patched.setattr(collecting, "play_chunk", stop)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    with pytest.raises(ValueError, match="with other settings"):
        go_on(change)
    go_on()
    assert read_metadata(tmp_path / "t.parquet")["policy"]["model"] == "mine"


def test_games_of_another_folder_listing_are_another_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's arguments may be the same while its folder has grown."""

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "play_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    starts = list(list_starts(make_spec(tmp_path), Collection(**RANDOM), 0))
    monkeypatch.setattr(collecting, "list_starts", lambda *_: iter(starts[1:]))
    with pytest.raises(ValueError, match="with other settings"):
        run(tmp_path)


@pytest.mark.heavy
def test_a_failed_episode_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    games = {"train": ["a", "once"], "validation": ["v"]}
    with caplog.at_level(logging.WARNING):
        transitions = read_transitions(run(tmp_path, games, expert_share=1.0))
    assert Counter(t.game for t in transitions) == {"a": 3, "once": 3, "v": 3}
    assert "once is broken" in caplog.text
    assert "episode once#0 failed and is tried again" in caplog.text
    assert "dropped" not in caplog.text


@pytest.mark.heavy
def test_dropped_episodes_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    games = {"train": ["a", "b", "broken"], "validation": ["v"]}
    with caplog.at_level(logging.WARNING):
        path = run(tmp_path, games, expert_share=1.0)
    assert {t.game for t in read_transitions(path)} == {"a", "b", "v"}  # nothing of the failed one
    assert read_metadata(path)["dropped_episodes"] == 1
    assert "episode broken#0 failed and is dropped" in caplog.text


@pytest.mark.heavy
def test_too_many_dropped_episodes_stop_the_collection(tmp_path: Path) -> None:
    games = {"train": ["broken1", "broken2", "a"], "validation": ["v"]}
    with pytest.raises(
        RuntimeError,
        match=r"2 of \d episodes were lost .* data\.predictions\.collection\.max_dropped_share \(0\.1\)",
    ):
        run(tmp_path, games)
    path = run(tmp_path, games, name="loose.parquet", max_dropped_share=0.5)
    assert read_metadata(path)["dropped_episodes"] == 2


@pytest.mark.heavy
def test_no_transitions_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no transitions were collected from 1 episodes"):
        run(tmp_path, {"train": ["broken"]})


def starts_of(spec: EnvironmentSpec, **settings: Any) -> Counter[tuple[str, str]]:
    return Counter(
        (start.game, start.split) for start in list_starts(spec, Collection(**{**RANDOM, **settings}), 0)
    )


def test_splits_are_the_environments_own_or_drawn_by_game(tmp_path: Path) -> None:
    named = {"train": ["a", "b"], "valid_seen": ["s"], "valid_unseen": ["u"]}
    spec = make_spec(tmp_path, named)
    assert starts_of(spec) == {
        ("a", "train"): 1,
        ("b", "train"): 1,
        ("s", "validation"): 1,
        ("u", "validation"): 1,
    }
    assert set(starts_of(spec, splits=["train", "valid_seen"])) == {
        ("a", "train"),
        ("b", "train"),
        ("s", "validation"),
    }
    drawn = starts_of(make_spec(tmp_path, {"train": [f"g{n}" for n in range(20)]}), episodes_per_game=3)
    assert sum(split == "validation" for _, split in drawn) == 2
    assert set(drawn.values()) == {3}
    unnamed = list(list_starts(make_spec(tmp_path, None), Collection(**RANDOM, episodes_per_game=10), 0))
    assert Counter(start.split for start in unnamed) == {"train": 9, "validation": 1}
    with pytest.raises(
        ValueError,
        match=r"data\.predictions\.collection\.splits names 'test'; the environment has train, valid_seen",
    ):
        starts_of(spec, splits=["test"])


@pytest.mark.parametrize(
    ("text", "action", "thinking"),
    [
        ("<think>hm</think>\n<action>go  on</action>", "go on", "hm"),
        ("<think><action>no</action></think><action>yes</action>", "yes", "<action>no</action>"),
        ("<think>hm</think>\n go on \n\n", "go on", "hm"),
        ("so\nwait", "wait", ""),
        ("", "", ""),
        ("<think>never ends", "", "never ends"),
        ("x" * 1900, "x" * 1000, ""),
    ],
)
def test_actions_are_read_from_answers(text: str, action: str, thinking: str) -> None:
    assert parse_action(text) == (action, thinking)


class ScriptedGenerator:
    """Answers every prompt with the same text."""

    max_model_len: int | None = None

    policy_version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self.ids = ChatFormat(tokenizer).encode_label((), text)
        self.calls: list[tuple[Any, Sampling, Any]] = []

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> list[list[Completion]]:
        self.calls.append((prompts, sampling, seeds))
        return [[Completion(self.ids, (0.0,) * len(self.ids), "stop", 0)] * len(group) for group in seeds]


def test_the_model_collects(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    generator: Any = ScriptedGenerator(tiny_tokenizer, "<action>go on</action>")
    asked = generator.calls
    collection = Collection(behaviour="model", num_workers=1)
    path = tmp_path / "t.parquet"
    chat = ChatFormat(tiny_tokenizer)
    collect(path, make_spec(tmp_path), collection, 0, lambda: PolicyClient(generator, chat))
    assert Counter(t.action for t in read_transitions(path)) == {"go on": 12}
    assert sorted(seed for _, _, seeds in asked for group in seeds for seed in group) == sorted(
        derive_seed(0, "act", f"{game}#0", turn) for game in "abcv" for turn in range(3)
    )


def test_whole_episodes_are_recorded_batch_by_batch(tmp_path: Path) -> None:
    seen: list[tuple[int, int, list[Episode]]] = []
    collection = Collection(**{**RANDOM, "max_turns": 3})
    arguments = (
        tmp_path / "t.parquet",
        make_spec(tmp_path),
        collection,
        0,
        no_policy,
    )
    collect(*arguments, record=lambda *batch: seen.append(batch))
    assert [(number, total) for number, total, _ in seen] == [(1, 2), (2, 2)]
    episodes = [episode for _, _, batch in seen for episode in batch]
    assert sorted(episode.episode_id for episode in episodes) == ["a#0", "b#0", "c#0", "v#0"]
    transitions = {t.transition_id: t for t in read_transitions(tmp_path / "t.parquet")}
    for episode in episodes:
        solved = episode.final_observation.startswith("Room 3")
        assert (episode.episode_return, episode.truncated) == (float(solved), not solved)
        assert episode.success is None  # this environment does not say
        for number, turn in enumerate(episode.turns):
            transition = transitions[f"{episode.episode_id}/{number}"]
            assert (turn.observation, turn.action) == (transition.observation, transition.action)


def collect_answers(
    folder: Path, answers: dict[str, Any], generator: Any = None, tokenizer: Any = None, **settings: Any
) -> tuple[Path, list[Episode]]:
    """Collect from an environment that gives these answers; every episode is recorded too."""
    seen: list[Episode] = []
    arguments = {"behaviour": "model" if generator else "random", "num_workers": 1, **settings}
    path = folder / "t.parquet"
    collect(
        path,
        EnvironmentSpec("support.environments:AnsweringEnv", answers),
        Collection(**arguments),
        0,
        no_policy if generator is None else lambda: PolicyClient(generator, ChatFormat(tokenizer), 600),
        lambda number, total, episodes: seen.extend(episodes),
    )
    return path, seen


ACT = {"admissible_actions": ["look"], "task": "t"}


@pytest.mark.heavy
def test_the_last_reason_of_lost_episodes_ends_the_collection(tmp_path: Path) -> None:
    answers = {"first": ("o", ACT), "later": ("o", float("nan"), False, False, ACT), "tasks": ["a", "b"]}
    with pytest.raises(
        RuntimeError,
        match=r"2 of 2 episodes were lost .*; episode [ab]#0: slot \d: ValueError: environment "
        r"'support.environments:AnsweringEnv' \(task '[ab]', seed \d+\), step 1: reward is nan \(float\), not a finite number$",
    ):
        collect_answers(tmp_path, answers)
    with pytest.raises(
        RuntimeError,
        match=r"no transitions were collected from 1 episodes; episode a#0: .*observation is 0 \(int\)",
    ):
        collect_answers(tmp_path / "one", {"first": (0, ACT), "tasks": ["a"]})


@pytest.mark.heavy
def test_a_collection_stopped_by_lost_episodes_gives_the_reason_again(tmp_path: Path) -> None:
    answers = {"first": (None, ACT), "tasks": ["a", "b"]}
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"observation is None, not text"):
            collect_answers(tmp_path, answers)


@pytest.mark.heavy
def test_lone_surrogates_do_not_end_a_collection(tmp_path: Path) -> None:
    bad = {"admissible_actions": ["look \ud800"], "task": "\udc00", "kind": "\ud800"}
    answers = {"first": ("a\ud800", bad), "later": ("b\udfff", 0.0, False, True, bad), "tasks": ["a", "b"]}
    path, _ = collect_answers(tmp_path, answers)
    assert {(t.observation, t.action, t.next_state, t.kind, t.task) for t in read_transitions(path)} == {
        ("a\ufffd", "look \ufffd", "b\ufffd", "\ufffd", "\ufffd")
    }


def test_silence_is_no_sample(tmp_path: Path) -> None:
    later = [("", 0.0, False, False, ACT), ("b", 0.0, False, False, ACT), ("c", 0.0, True, False, ACT)]
    path, (episode, _) = collect_answers(tmp_path, {"first": ("a", ACT), "later": later, "tasks": ["x", "y"]})
    assert [turn.observation for turn in episode.turns] == ["a", "", "b"]
    assert {(t.observation, t.next_state) for t in read_transitions(path)} == {("b", "c")}


def test_a_task_of_two_splits_is_refused(tmp_path: Path) -> None:
    tasks = {"train": ["a", "b"], "small": ["b"]}
    with pytest.raises(ValueError, match=r"lists the task 'b' more than once \(splits: train, small\)"):
        collect_answers(tmp_path, {"tasks": tasks})
    with pytest.raises(
        ValueError,
        match=r"environment 'support.environments:AnsweringEnv': tasks\['train'\]\[0\] is 1 \(int\)",
    ):
        collect_answers(tmp_path, {"tasks": [1]})


@pytest.mark.parametrize(("terminated", "truncated"), [(False, True), (True, False), (True, True)])
def test_an_episode_ends_where_the_environment_says_so(
    tmp_path: Path, terminated: bool, truncated: bool
) -> None:
    later = [("b", 0.0, False, False, ACT), ("c", 0.0, terminated, truncated, ACT)]
    _, episodes = collect_answers(tmp_path, {"first": ("a", ACT), "later": later, "tasks": ["x", "y"]})
    assert [len(episode.turns) for episode in episodes] == [2, 2]
    assert {episode.truncated for episode in episodes} == {not terminated}


@pytest.mark.heavy
@pytest.mark.parametrize("layout", ["window", "conversation", "chat"])
def test_an_episode_that_no_longer_fits_is_truncated(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, layout: Any
) -> None:
    generator = ScriptedGenerator(tiny_tokenizer, "<action>look</action>")
    prompt = ActionPrompt(
        layout, system="", user="{observation}", reply="{observation}", max_observation_chars=10**6
    )
    later = [("b", 0.0, False, False, ACT), ("x y" * 70_000, 0.0, False, False, ACT)]
    path, episodes = collect_answers(
        tmp_path,
        {"first": ("a", ACT), "later": later, "tasks": ["x", "y"]},
        generator,
        tiny_tokenizer,
        prompt=prompt,
    )
    assert [(len(episode.turns), episode.truncated) for episode in episodes] == [(2, True)] * 2
    assert [sum(map(len, seeds)) for _, _, seeds in generator.calls] == [
        2,
        2,
    ]  # nothing is asked for what does not fit
    assert len(read_transitions(path)) == 4


@pytest.mark.heavy
def test_the_models_own_context_ends_an_episode_where_the_generator_states_none(
    tmp_path: Path, tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator: Any = ScriptedGenerator(tiny_tokenizer, "<action>look</action>")
    long = ("x y " * 20_000, 0.0, False, False, ACT)
    answers = {"first": ("a", ACT), "later": long, "tasks": ["x", "y"]}
    prompt = ActionPrompt("conversation", system="", user="{observation}", reply="{observation}", max_observation_chars=10**6)  # fmt: skip
    episodes: list[Episode] = []
    data = RolloutDataModule(generator, EnvironmentSpec("support.environments:AnsweringEnv", answers))
    module: Any = SimpleNamespace(model=str(tiny_model), tokenizer=tiny_tokenizer)
    collection = Collection("model", num_workers=1, max_new_tokens=8, prompt=prompt)
    Predictions(str(tmp_path / "t.parquet"), collection=collection).collect(
        data.environment, 0, lambda: data.ask(module), lambda number, total, played: episodes.extend(played)
    )
    assert [(len(episode.turns), episode.truncated) for episode in episodes] == [(1, True)] * 2
