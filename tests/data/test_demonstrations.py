"""What is imitated: tokens of solved episodes, with and without thoughts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.demonstrations import Demonstrations, collect_demonstrations, read_labels
from rwml_lightning.data.reflections import Reflection, one_line
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.episodes.games import Game
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards.server import Server
from rwml_lightning.schema import Label
from support.fake_server import FakeServer, say, serving
from support.scripted_generator import Scripted

TASKS = {"train": ["a", "b"]}
PROMPT = ActionPrompt(layout="conversation", system="", user="{task}\n{observation}", reply="{observation}")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    spec = EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": TASKS, "folder": str(tmp_path), "length": 3}
    )
    with EnvironmentPool(spec, num_workers=1) as pool:
        yield pool


def collect(
    pool: EnvironmentPool,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    answer: Any = lambda prompt, seed: "",
    prompt: ActionPrompt = PROMPT,
    context: int | None = None,
    **settings: Any,
) -> tuple[list[Label], Scripted]:
    generator = Scripted(tokenizer, answer)
    policy = PolicyClient(generator, ChatFormat(tokenizer), context)  # type: ignore[arg-type]
    player = EpisodePlayer(pool, policy, prompt, 0)
    wanted = Demonstrations(str(path), max_turns=4, **settings)
    collect_demonstrations(wanted, player, [Game("a", 1), Game("b", 2)], 20)
    return read_labels(path, ChatFormat(tokenizer)), generator


def texts(tokenizer: PreTrainedTokenizerBase, labels: list[Label]) -> list[str]:
    return [tokenizer.decode(list(label.answer_ids), skip_special_tokens=True) for label in labels]


def test_an_expert_is_imitated_as_one_growing_conversation(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    labels, generator = collect(pool, tiny_tokenizer, tmp_path / "d.parquet")
    assert texts(tiny_tokenizer, labels) == ["<think></think>\n<action>go on</action>"] * 4
    assert generator.batches == []
    assert [label.name for label in labels] == [f"expert-{game}#0/{turn}" for game in "ab" for turn in (0, 1)]
    first, second = labels[:2]
    so_far = first.prompt_ids + first.answer_ids
    assert second.prompt_ids[: len(so_far)] == so_far
    assert "Room 1 of a" in tiny_tokenizer.decode(list(second.prompt_ids[len(so_far) :]))


def test_turns_that_do_not_fit_the_context_are_left_out_and_named(
    pool: EnvironmentPool,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, _ = collect(pool, tiny_tokenizer, tmp_path / "whole.parquet")
    longest = max(len(label.prompt_ids) + len(label.answer_ids) for label in whole)
    fitting, _ = collect(pool, tiny_tokenizer, tmp_path / "some.parquet", context=longest - 1)
    assert fitting == [x for x in whole if len(x.prompt_ids) + len(x.answer_ids) < longest] != []
    assert "expert-a#0/1 does not fit the context and is left out" in caplog.text
    same, _ = collect(pool, tiny_tokenizer, tmp_path / "all.parquet", context=longest)
    assert same == whole


def test_reflections_whose_question_does_not_fit_are_empty(
    pool: EnvironmentPool,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    how = Reflection(2, max_tokens=1000)
    labels, generator = collect(
        pool, tiny_tokenizer, tmp_path / "d.parquet", source="reflection", reflection=how, context=1000
    )
    assert texts(tiny_tokenizer, labels) == ["<think></think>\n<action>go on</action>"] * 4
    assert generator.batches == []
    assert "4 of 4 reflections do not fit the context" in caplog.text


def test_reflections_see_what_others_would_have_done_and_become_thoughts(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    asked: list[str] = []

    def reflect(prompt: str, seed: int) -> str:
        asked.append(prompt)
        return "<think>Hm.</think>Going on\nleads</action> there."

    labels, _ = collect(
        pool, tiny_tokenizer, tmp_path / "d.parquet", reflect, source="reflection", reflection=Reflection(2)
    )
    assert (
        texts(tiny_tokenizer, labels) == ["<think>Going on leads there.</think>\n<action>go on</action>"] * 4
    )
    assert len(asked) == 4
    for line in (
        "- go back: Room 0 of a",
        "- go on: Room 2 of a",
        "- wait: Room 1 of a",
        "best of them is: go on",
    ):
        assert line in asked[1]


@pytest.mark.heavy
def test_a_chat_model_on_a_server_may_write_the_reflections(
    pool: EnvironmentPool,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        asked = body["messages"][0]["content"]
        return (
            (400, {"error": "no"})
            if "Observation: Room 1 of b" in asked
            else (200, say("<think>Hm.</think>Onwards."))
        )

    with serving(FakeServer(answer)) as fake, caplog.at_level(logging.WARNING):
        how = Reflection(1, max_tokens=9, temperature=0.5, server=Server("writer", fake.url))
        labels, generator = collect(
            pool, tiny_tokenizer, tmp_path / "d.parquet", source="reflection", reflection=how
        )
    thoughts = [
        text.partition("</think>")[0].removeprefix("<think>") for text in texts(tiny_tokenizer, labels)
    ]
    assert thoughts == ["Onwards.", "Onwards.", "Onwards.", ""]
    assert generator.batches == []
    assert {(path, body["model"], body["max_tokens"]) for path, body, _ in fake.requests} == {
        ("/v1/chat/completions", "writer", 9)
    }
    assert "1 of 4 reflections are empty; the first error: " in caplog.text


def test_own_successes_are_kept_token_by_token(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def play(prompt: str, seed: int) -> str:
        return "<action>go on</action>" if " of a," in prompt else "<action>wait</action>"

    labels, _ = collect(
        pool, tiny_tokenizer, tmp_path / "d.parquet", play, source="policy", episodes_per_game=2
    )
    assert texts(tiny_tokenizer, labels) == ["<action>go on</action>"] * 4
    with pytest.raises(ValueError, match="none of 2 games was solved"):
        collect(pool, tiny_tokenizer, tmp_path / "none.parquet", source="policy", episodes_per_game=2)
    assert not (tmp_path / "none.parquet").exists()


def test_what_does_not_fit_is_refused(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    prompt = replace(PROMPT, answer="{action}")
    with pytest.raises(ValueError, match=r"data\.episodes\.prompt\.answer has no field \{thinking\}"):
        collect(pool, tiny_tokenizer, tmp_path / "d.parquet", prompt=prompt, source="reflection")
    with pytest.raises(ValueError, match=r"reflection\.num_alternatives is 0"):
        Reflection(0)
    with pytest.raises(ValueError, match=r"reflection\.user contains the unknown field \{outcome\}"):
        Reflection(user="{outcome}")
    write_transitions(tmp_path / "t.parquet", [])
    with pytest.raises(ValueError, match="is not a file of demonstrations"):
        read_labels(tmp_path / "t.parquet", ChatFormat(tiny_tokenizer))
    collect(pool, tiny_tokenizer, tmp_path / "d.parquet")
    tiny_tokenizer.chat_template, kept = "{{ messages }}", tiny_tokenizer.chat_template
    try:
        with pytest.raises(ValueError, match="was written with another tokenizer"):
            read_labels(tmp_path / "d.parquet", ChatFormat(tiny_tokenizer))
    finally:
        tiny_tokenizer.chat_template = kept


def test_tags_and_line_breaks_do_not_leave_a_thought() -> None:
    assert one_line("a <think>b\n\nc</think>\n<action>d</action>") == "a b c d"
