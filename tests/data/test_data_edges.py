"""Bounds and sums of the data by hand: where one more or one less changes what is decided, counted or shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rwml_testing import make_transition
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.batches import Label
from rwml_lightning.data.branches import ExpertGame, follow_expert
from rwml_lightning.data.chat_format import ChatFormat, fingerprint
from rwml_lightning.data.collection import (
    Collection,
    Job,
    check_settings,
    collection_table,
    is_validation,
    play,
)
from rwml_lightning.data.demonstrations import in_parts, read_labels, write_labels
from rwml_lightning.data.easy_samples import (
    Marks,
    calibrate,
    check_marks,
    describe_marks,
    histogram,
    mean_rewards,
    render_histogram,
)
from rwml_lightning.data.episodes import episode_seed
from rwml_lightning.data.filter_columns import read_filter_columns, write_filter_columns
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.prompts import WorldModelPrompt, shorten
from rwml_lightning.data.reflections import Reflection, _read, _request, one_line
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.selection import those_that_fit
from rwml_lightning.data.transitions import read_metadata, read_transitions, split_of_game, write_transitions
from rwml_lightning.envs import Failure, Observation
from rwml_lightning.schema import Score, Turn
from rwml_lightning.terminal import Terminal

Mark: Any = SimpleNamespace
ACT = {"admissible_actions": ["go", "wait"], "task": "t"}


class Pool:
    """Environments in one process: an episode of ``length`` steps, or what ``broken`` says of a slot's n-th reset."""

    def __init__(
        self, length: int = 2, plan: Any = ("go",) * 5, broken: dict[int, int] | None = None
    ) -> None:
        self.length, self.plan, self.broken = length, plan, broken or {}
        self.resets: list[Any] = []
        self.steps: dict[int, list[str]] = {}

    def reset_many(self, episodes: Any) -> dict[int, Any]:
        asked = list(episodes)
        self.resets.append(asked)
        self.steps |= {slot: [] for slot, _, _ in asked}
        return {slot: Observation(f"{task} 0", info=ACT) for slot, _, task in asked}

    def walkthrough_many(self, slots: Any) -> dict[int, Any]:
        return dict.fromkeys(slots, self.plan)

    def step_many(self, actions: Any) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        for slot, action in actions.items():
            self.steps[slot].append(action)
            if self.broken.get(slot, 0) >= len(self.resets):
                answers[slot] = Failure("raised", f"slot {slot} broke\nmore")
            else:
                number = len(self.steps[slot])
                done = number == self.length
                answers[slot] = Observation(f"at {number}", float(done), done, info=ACT)
        return answers


class Player:
    """Goes on, and ends the episode "b" at once."""

    def act(self, states: Any) -> list[Any]:
        return [None if s.episode_id == "b#0" else ("go", "hm") for s in states]


def test_episodes_are_played_with_their_own_seeds_and_tried_twice(caplog: pytest.LogCaptureFixture) -> None:
    pool: Any = Pool(3, broken={0: 1, 2: 9})
    jobs = [
        Job(game, 0, split)
        for game, split in (("a", "train"), ("b", "train"), ("c", "train"), ("", "validation"))
    ]  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        played, lost = play(pool, jobs, Player(), Collection(max_steps=2, history_turns=1), "env", 5)
    seeds = [(n, episode_seed(5, job.episode_id), job.game or None) for n, job in enumerate(jobs)]
    assert pool.resets == [seeds, [seeds[0], seeds[2]]]
    assert lost == {"c#0": "slot 2 broke"}
    assert [one.episode.episode_id for one in played] == ["a#0", "b#0", "#0"]
    assert [(len(one.episode.turns), one.episode.truncated, one.episode.seed) for one in played] == [
        (2, True, seeds[0][1]), (0, True, seeds[1][1]), (2, True, seeds[3][1]),
    ]  # fmt: skip
    first, _, last = (one.transitions for one in played)
    assert [t.transition_id for t in first] == ["a#0/0", "a#0/1"]
    assert [(t.environment, t.split, len(t.history)) for t in last] == [
        ("env", "validation", 0),
        ("env", "validation", 1),
    ]
    assert played[0].episode.turns[0] == Turn("a 0", "go", True, 0.0, "hm")
    told = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert told == [f"episode {name} failed and {fate}" for name, fate in (
        ("a#0", "is tried again"), ("c#0", "is tried again"), ("c#0", "is dropped"))]  # fmt: skip
    (whole,), _ = play(Pool(2), jobs[:1], Player(), Collection(max_steps=2), "env", 5)  # type: ignore[arg-type]
    assert not whole.episode.truncated


@pytest.mark.parametrize(("share", "plans"), [(0.0, ()), (0.5, ("go",) * 5)])
def test_the_plan_is_asked_for_where_it_is_followed(share: float, plans: Any) -> None:
    seen: list[Any] = []
    player: Any = Mark(
        act=lambda states: seen.extend(s.walkthrough for s in states) or [None for _ in states]
    )
    play(Pool(), [Job("a", 0, "train")], player, Collection(expert_share=share), "e", 0)  # type: ignore[arg-type]
    assert seen == [plans]


def test_a_plan_that_fails_loses_the_episode() -> None:
    pool: Any = Pool(plan=Failure("raised", "no plan\nmore"))
    played, lost = play(pool, [Job("a", 0, "train")], Player(), Collection(expert_share=1.0), "e", 0)
    assert (played, lost) == ([], {"a#0": "no plan"})


def test_branches_repeat_the_experts_actions_up_to_their_turn() -> None:
    pool: Any = Pool(3)
    games = [ExpertGame("a#0", "a", 7, "validation"), ExpertGame("#1", "", 8)]
    found, unsolved = follow_expert(pool, "env", games, 4, 0, num_alternatives=1, history_turns=1)
    assert unsolved == {}
    assert pool.resets == [
        [(0, 7, "a"), (1, 8, None)],
        [(n, 7 + n // 3, "a" if n < 3 else None) for n in range(6)],
    ]
    assert [pool.steps[n] for n in range(6)] == [["wait"], ["go", "wait"], ["go", "go", "wait"]] * 2
    for game, one in zip(games, found, strict=True):
        assert (one.episode.episode_id, one.episode.seed, one.episode.game) == (
            game.episode_id,
            game.seed,
            game.task,
        )
        for turn, step in enumerate(one.steps):
            (other,) = step.alternatives
            assert other.transition_id == f"{game.episode_id}~{turn}.0/{turn}"
            assert (other.action, other.split, other.environment) == ("wait", game.split, "env")
            assert step.transition.transition_id == f"{game.episode_id}/{turn}"
            assert (step.transition.split, len(step.transition.history)) == (game.split, min(turn, 1))
            assert len(other.history) == min(turn, 1)
    none, missing = follow_expert(Pool(3), "env", games, 2, 0)  # type: ignore[arg-type]
    assert (none, missing) == ([], dict.fromkeys(("a#0", "#1"), "its walkthrough does not solve it"))
    short, _ = follow_expert(Pool(2), "env", games, 2, 0)  # type: ignore[arg-type]
    assert [len(one.steps) for one in short] == [2, 2]
    assert all(step.alternatives == () for one in short for step in one.steps)


@pytest.mark.parametrize(
    ("split", "held_out"),
    [
        ("valid_seen", True),
        ("validation", True),
        ("test", True),
        ("eval_x", True),
        ("train", False),
        ("retest", False),
    ],
)
def test_which_splits_are_never_trained_on(split: str, held_out: bool) -> None:
    assert is_validation(split) is held_out


def test_settings_of_parts_do_not_depend_on_their_order(tmp_path: Path) -> None:
    check_settings(tmp_path / "x" / "y.parts", {"b": 1, "a": Path("p")})
    check_settings(tmp_path / "x" / "y.parts", {"a": Path("p"), "b": 1})
    assert json.loads((tmp_path / "x" / "y.parts" / "settings.json").read_text()) == {"a": "p", "b": 1}
    with pytest.raises(ValueError, match=r"y\.parts holds the parts of a collection with other settings"):
        check_settings(tmp_path / "x" / "y.parts", {"a": Path("p"), "b": 2})


def test_the_table_of_a_collection_counts_by_kind_and_split() -> None:
    rows = [
        make_transition(0, kind="move"), make_transition(1, kind="move", split="validation", valid=False),
        make_transition(2, kind="look", knowable=False), make_transition(3, kind="move", valid=False),
    ]  # fmt: skip
    table = collection_table(rows, 5, 2)
    assert table.title == "4 transitions of 3 episodes, 2 dropped"
    assert [(c.header, c.justify, list(c.cells)) for c in table.columns] == [
        ("kind", "left", ["look", "move"]), ("train", "right", ["1", "2"]), ("validation", "right", ["0", "1"]),
        ("invalid", "right", ["0", "2"]), ("not knowable", "right", ["1", "0"]),
    ]  # fmt: skip
    Terminal(quiet=True).print(table)


def test_shares_and_gaps_of_the_filter() -> None:
    assert calibrate([1.0, 0.5], 0.75) == 1.0  # 1/2 and 2/2 are equally near: the smaller share
    assert calibrate([1.0, 0.5], 0.76) == 0.5
    assert calibrate([0.5, 0.0, 0.0, 0.0], 0.3) == 0.5
    easy = frozenset({"a"})
    check_marks(Marks(0.5, easy, easy), 2, calibrated=True)
    for one, judged in ((frozenset(), 2), (easy, 1)):
        with pytest.raises(ValueError, match="every one of 1 " if one else "no one of 2 "):
            check_marks(Marks(0.5, one, one), judged, calibrated=False)
    assert describe_marks(Marks(None, frozenset(), frozenset()), 1200) == (
        "0 of 1,200 training transitions are easy: no prediction earned a reward"
    )


def test_bins_take_their_lower_edge_and_what_lies_outside_counts_at_the_end() -> None:
    assert histogram([-1.0, 0.0, 0.49, 0.5, 1.0, 7.0], 2) == [3, 3]
    assert histogram([0.1 * 3, 0.7, 0.0999]) == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert render_histogram([40, 10, 1]).splitlines() == [
        f"0.0 {'#' * 40} 40", f"0.3 {'#' * 10:<40} 10", f"0.7 {'#':<40} 1",
    ]  # fmt: skip


class Given:
    """Gives the scores that it is told."""

    success_similarity = 0.5

    def __init__(self, *scores: Score | None) -> None:
        self.scores = list(scores)

    def score(self, transitions: Any, predictions: Any) -> list[Score | None]:
        return self.scores


def test_a_mean_is_over_verdicts_and_0_without_any() -> None:
    world = [make_transition(n) for n in range(2)]
    reward = Given(Score(0.5, 0.8, True), None, Score(1.0, 0.81, True), None, None)
    asked = [["a", "b", "c"], ["d", "e"]]
    assert mean_rewards(reward, None, world, asked) == {"t0": 0.75, "t1": 0.0}
    assert mean_rewards(reward, 0.2, world, asked) == {"t0": 0.5, "t1": 0.0}  # 0.8 is not above 1 - 0.2
    without = Given(Score(0.0, None, False))
    assert mean_rewards(without, 0.2, world[:1], [[None]]) == {
        "t0": 0.0
    }  # no prediction states no similarity


@pytest.mark.parametrize(("length", "kept"), [(3, 3), (4, 4), (5, 4)])
def test_texts_are_cut_above_their_limit(length: int, kept: int) -> None:
    text = "abcdefg"[:length]
    assert shorten(text, 4) == (text if length == kept else "ab ... de")


def test_prompts_are_cut_to_turns_and_characters() -> None:
    history = tuple(Turn(f"observation {n}", f"action {n}") for n in range(3))
    prompt = WorldModelPrompt(1, 6, user="{task}|{history}|{observation}|{action}")
    transition = make_transition(observation="0123456789", action="0123456789", history=history)
    assert prompt.render(transition, lambda text: f"<{text}>") == (
        "<tidy up>|Past observation: <obse ...  2>\nPast action: <action 2>\n|<0123 ... 89>|<0123456789>"
    )


def test_a_prompt_may_fill_the_room_that_the_answer_leaves(
    tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    prompt, chat = WorldModelPrompt(0, system="", user="{action}"), ChatFormat(tiny_tokenizer)
    world = [make_transition(n, action="x " * (n + 1)) for n in range(3)]
    lengths = [len(prompt.encode(chat, t)) for t in world]
    assert lengths == sorted(set(lengths))

    def fit(context: int | None, on_broken: Any = "skip") -> list[Any]:
        return those_that_fit(Path("p"), world, prompt, chat, context, 5, on_broken)

    assert fit(None) == fit(lengths[2] + 5, "raise") == world
    assert not caplog.records
    assert fit(lengths[2] + 4) == world[:2]
    assert caplog.records[-1].getMessage() == (
        f"p: 1 of 3 prompts are longer than {lengths[2] - 1} tokens, which is what a context of {lengths[2] + 4} leaves beside "
        f"data.sampling.max_tokens; the longest has {lengths[2]}, for example t2. They are left out"
    )
    for context, on_broken in ((lengths[2] + 4, "raise"), (lengths[0] + 4, "skip")):
        with pytest.raises(ValueError, match=r"Lower data\.prompt\.history_turns"):
            fit(context, on_broken)


@pytest.mark.parametrize(("share", "stops"), [(0.5, False), (0.49, True)])
def test_a_run_stops_above_the_share_of_dropped_groups(
    share: float, stops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rollouts: Any = WorldModelRollouts(None, None, None, None, 0, share)  # type: ignore[arg-type]
    world = [make_transition(n) for n in range(4)]
    rollouts._count(world[:1], [])  # one alone stops nothing
    assert caplog.records[-1].getMessage() == "no verdict on a member, so the group is left out: t0"
    groups = [Mark(transition=t) for t in world[:2]]
    if stops:
        with pytest.raises(
            ValueError, match=r"2 of 4 groups got no verdict, more than data\.max_dropped_share"
        ):
            rollouts._count(world[:3], groups)
    else:
        rollouts._count(world[:3], groups)
        rollouts._count(world, [Mark(transition=t) for t in world])
        assert len(caplog.records) == 2


def test_splits_leave_at_least_one_game_on_each_side() -> None:
    names = [f"g{n}" for n in range(4)]
    for share, held_out in ((0.0, 0), (0.01, 1), (0.5, 2), (0.99, 3), (1.0, 3)):
        assert list(split_of_game(names, 0, share).values()).count("validation") == held_out
    assert split_of_game(["a", "b"], 0, 0.01).keys() == {"a", "b"}
    assert set(split_of_game(["a", "b"], 0, 0.01).values()) == {"train", "validation"}
    assert split_of_game(["a"], 0, 0.9) == {"a": "validation"}
    assert split_of_game([], 0, 0.5) == {}


def test_no_more_than_twenty_broken_rows_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [make_transition(n, action="" if n else "a") for n in range(23)]
    write_transitions(tmp_path / "t", rows)
    assert read_metadata(tmp_path / "t") == {}
    assert [t.transition_id for t in read_transitions(tmp_path / "t", "skip")] == ["t0"]
    named = ", ".join(f"{n} (action is empty)" for n in range(1, 21))
    assert caplog.records[-1].getMessage() == f"{tmp_path / 't'}: 22 broken rows left out: {named}"


def test_files_that_do_not_say_how_they_were_made(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_transitions(path, [make_transition(0), make_transition(1)])
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert read_metadata(path) == {}
    assert read_filter_columns(path) is None
    write_filter_columns(path, {"t0": 0.5}, ["t0"], {"k": 1})
    found = read_filter_columns(path)
    assert found is not None
    assert (found.mean_rewards, found.settings) == ({"t0": 0.5}, {"k": 1})
    write_filter_columns(path, {"t1": 0.0}, [], {"k": 2})
    table = pq.read_table(path)
    assert table.column_names[-2:] == ["filter_mean_reward", "filter_kept"]
    assert [table.schema.field(name).type for name in table.column_names[-2:]] == [pa.float64(), pa.bool_()]
    assert table["filter_kept"].to_pylist() == [None, False]


def test_floors_know_tools_by_name_and_actions_by_their_first_word() -> None:
    call = '<tool_call>\n{{"name":  "{}", "x": 1}}</tool_call>'
    known = [
        make_transition(n, action=action, next_state=answer)
        for n, (action, answer) in enumerate(
            [(call.format("a"), "A"), (call.format("b"), "B"), ("go 1", "G"), ("go 2", "G")]
        )
    ]
    common = floors_for(known, known)["most_common"]
    asked = [call.format("b"), call.format("a"), "go 3", "say", ""]
    assert [common(make_transition(action=action)) for action in asked] == ["B", "A", "G", "G", "G"]


def test_labels_are_read_back_with_the_chat_format_that_wrote_them(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    chat, path = ChatFormat(tiny_tokenizer), tmp_path / "folder" / "deeper" / "d"
    labels = [Label("n", (1, 2), (3,)), Label("m", (), (4, 5))]
    write_labels(path, labels, {"tokenizer": fingerprint(chat), "k": 1})
    assert read_labels(path, chat) == labels
    assert [file.name for file in path.parent.iterdir()] == ["d"]
    assert read_metadata(path) == {"tokenizer": fingerprint(chat), "k": 1}
    assert len(fingerprint(chat)) == 16
    write_labels(path, labels, {})
    with pytest.raises(ValueError, match=r"d was written with another tokenizer or chat template"):
        read_labels(path, chat)
    with pytest.raises(ValueError, match=r"data\.demonstrations\.path: .*none is no file of demonstrations"):
        read_labels(tmp_path / "none", chat)
    assert in_parts(labels, 1) == [labels[:1], labels[1:]]
    assert in_parts(labels, 2) == [labels]
    assert in_parts([], 2) == []


def test_a_server_is_asked_for_a_reflection_as_the_config_says() -> None:
    request = _request(Reflection(max_tokens=9, temperature=0.3), "Why?")
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 9, "temperature": 0.3}
    assert request.body(0) == request.body(2) == body
    assert request.read({"choices": [{"message": {"content": " So. "}}]}) == " So. "
    for nonsense in (
        {},
        {"choices": []},
        None,
        {"choices": [{"message": {"content": " \n"}}]},
        {"choices": [{"message": {"content": 1}}]},
    ):
        with pytest.raises(ValueError, match=r"no text in choices\[0\]\.message\.content"):
            _read(nonsense)
    assert one_line("a</think>b\n<next_state> c") == "a b c"
    with pytest.raises(ValueError, match=r"data\.demonstrations\.reflection\.num_alternatives is 0"):
        Reflection(0)
    assert Reflection(1).num_alternatives == 1
