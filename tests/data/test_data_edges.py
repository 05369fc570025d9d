"""Bounds and sums of the data by hand: where one more or one less changes what is decided, counted or shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rwml_callbacks.easy_samples.columns import read_filter_columns, write_filter_columns
from rwml_callbacks.easy_samples.marks import (
    Marks,
    calibrate,
    check_marks,
    describe_marks,
    histogram,
    mean_rewards,
    render_histogram,
)
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.collection import check_settings, collection_table
from rwml_lightning.data.demonstrations import read_labels, write_labels
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.reflections import Reflection, _read, _request, one_line
from rwml_lightning.data.selection import select_fitting
from rwml_lightning.data.transitions import read_metadata, read_transitions, split_of_game, write_transitions
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.prompts.next_state import WorldModelPrompt, shorten
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Label, Score, Turn
from rwml_lightning.terminal import Terminal
from support.worlds import make_transition

Mark: Any = SimpleNamespace


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
    generator: Any = None  # nothing is generated
    lengths = [len(prompt.encode(chat, t)) for t in world]
    assert lengths == sorted(set(lengths))

    def fit(context: int | None, on_broken: Any = "skip") -> list[Any]:
        return select_fitting(Path("p"), world, prompt, PolicyClient(generator, chat, context), 5, on_broken)

    assert fit(None) == fit(lengths[2] + 5, "raise") == world
    assert not caplog.records
    assert fit(lengths[2] + 4) == world[:2]
    assert caplog.records[-1].getMessage() == (
        f"p: 1 of 3 prompts are longer than {lengths[2] - 1} tokens (context of {lengths[2] + 4} minus "
        f"data.predictions.sampling.max_tokens); the longest has {lengths[2]} tokens; example: t2. They are left out"
    )
    for context, on_broken in ((lengths[2] + 4, "raise"), (lengths[0] + 4, "skip")):
        with pytest.raises(ValueError, match=r"Lower data\.predictions\.prompt\.history_turns"):
            fit(context, on_broken)


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
    with pytest.raises(
        ValueError, match=r"data\.episodes\.demonstrations\.path: .*none is not a file of demonstrations"
    ):
        read_labels(tmp_path / "none", chat)


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
    with pytest.raises(
        ValueError, match=r"data\.episodes\.demonstrations\.reflection\.num_alternatives is 0"
    ):
        Reflection(0)
    assert Reflection(1).num_alternatives == 1
