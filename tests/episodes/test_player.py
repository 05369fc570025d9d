"""Policy rollouts over real environment processes, with a player whose answers are known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.episodes import Episodes
from rwml_lightning.data.labels import draw_played
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.episodes.games import Game, draw_games
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import EpisodeBatch, Sampling
from rwml_lightning.seeds import derive_seed
from support.scripted_generator import Scripted

TASKS = {"train": ["a", "once-b", "broken-c"], "validation": ["v"]}
SAMPLING = Sampling(max_tokens=30, temperature=0.7)
PROMPT = ActionPrompt(layout="conversation", system="", user="{observation}", reply="{observation}")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    spec = EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": TASKS, "folder": str(tmp_path), "length": 4}
    )
    with EnvironmentPool(spec, num_workers=2) as pool:
        yield pool


def play(
    pool: EnvironmentPool,
    tokenizer: PreTrainedTokenizerBase,
    answer: Callable[[str, int], str] = lambda prompt, seed: "<think>on</think><action>go on</action>",
    games: Sequence[str] = ("a", "v"),
    group_size: int = 2,
    max_turns: int = 6,
    **settings: Any,
) -> tuple[EpisodeBatch, Scripted]:
    generator = Scripted(tokenizer, answer)
    settings = {"success_reward": 10.0, "invalid_penalty": 0.1, "prompt": PROMPT, **settings}
    prompt = settings.pop("prompt")
    policy = PolicyClient(generator, ChatFormat(tokenizer), settings.pop("context", None))  # type: ignore[arg-type]
    player = EpisodePlayer(pool, policy, prompt, 0, **settings)
    batch = player.collect(
        "policy_grpo",
        5,
        [Game(game, seed) for seed, game in enumerate(games)],
        group_size,
        SAMPLING,
        max_turns,
    )
    return batch, generator


@pytest.mark.heavy
def test_groups_of_whole_episodes_one_batch_a_turn(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch, generator = play(pool, tiny_tokenizer)
    assert generator.batches == [4, 4, 4]
    assert (batch.step, batch.policy_version, batch.temperature, batch.dropped) == (5, 3, 0.7, ())
    assert set(batch.seconds) == {"generate", "env"}
    assert [group.game for group in batch.groups] == ["a", "v"]
    for group in batch.groups:
        first, second = group.members
        assert first.episode.turns == second.episode.turns  # the same game, the same seed, the same actions
        assert first.episode.final_observation.startswith(f"Room 3 of {group.game}")
        assert not first.episode.truncated
        assert first.total_reward == 10
        assert [turn.thinking for turn in first.episode.turns] == ["on"] * 3
        assert first.samples[0].prompt_ids == second.samples[0].prompt_ids
        for before, after in zip(first.samples, first.samples[1:], strict=False):
            so_far = before.prompt_ids + before.completion.token_ids
            assert after.prompt_ids[: len(so_far)] == so_far
    assert batch.groups[0].zero_variance
    assert sorted(seed for (seed,) in generator.seeds) == sorted(
        derive_seed(0, "policy_grpo", 5, game, place, member, turn)
        for place, game in enumerate("av")
        for member in range(2)
        for turn in range(3)
    )


def test_episodes_end_at_different_times(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    def answer(prompt: str, seed: int) -> str:
        return "<action>go on</action>" if "of a," in prompt else "<action>wait</action>"

    batch, generator = play(pool, tiny_tokenizer, answer)
    assert generator.batches == [4, 4, 4, 2, 2, 2]
    solved, cut = (group.members[0] for group in batch.groups)
    assert (len(solved.samples), solved.episode.truncated, solved.total_reward) == (3, False, 10)
    assert (len(cut.samples), cut.episode.truncated, cut.total_reward) == (6, True, 0)


@pytest.mark.heavy
def test_a_model_that_writes_no_action_pays_for_every_turn(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch, _ = play(pool, tiny_tokenizer, lambda *_: "", games=["a"])
    member = batch.groups[0].members[0]
    assert member.total_reward == pytest.approx(-0.6)
    assert not any(turn.valid for turn in member.episode.turns)
    assert member.episode.final_observation == "Nothing happens."


@pytest.mark.heavy
def test_an_episode_that_outgrows_the_context_is_cut_off_not_failed(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    whole, _ = play(pool, tiny_tokenizer, games=["a"])
    lengths = [len(sample.prompt_ids) for sample in whole.groups[0].members[0].samples]
    batch, _ = play(pool, tiny_tokenizer, games=["a"], context=lengths[1] + SAMPLING.max_tokens)
    member = batch.groups[0].members[0]
    assert len(member.samples) == 2
    assert member.episode.truncated
    assert batch.dropped == ()
    nothing, _ = play(pool, tiny_tokenizer, games=["a"], context=lengths[0])
    assert nothing.groups[0].members[0].samples == ()


@pytest.mark.heavy
def test_failures_are_tried_again_with_the_same_seeds_then_dropped_and_counted(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    batch, generator = play(pool, tiny_tokenizer, games=["once-b", "broken-c", "a"], group_size=1)
    assert [group.game for group in batch.groups] == ["once-b", "a"]
    (dropped,) = batch.dropped
    assert dropped.startswith("broken-c, member 0: the environment failed twice: ")
    assert "broken-c is broken" in dropped
    again = batch.groups[0].members[0]
    assert again.episode.final_observation.startswith("Room 3")
    first_try = generator.seeds[0]
    assert first_try in generator.seeds[3:]


@pytest.mark.heavy
def test_an_environment_that_hangs_at_reset_is_ended_and_its_group_counted(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    spec = EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": {"train": ["a", "asleep"]}, "folder": str(tmp_path)}
    )
    with EnvironmentPool(spec, num_workers=2, reset_timeout_s=1.0) as pool, caplog.at_level(logging.WARNING):
        batch, _ = play(pool, tiny_tokenizer, games=["a", "asleep"], group_size=1)
    assert [group.game for group in batch.groups] == ["a"]
    (dropped,) = batch.dropped
    assert dropped.startswith("asleep, member 0: ")
    assert "no answer within 1 s" in dropped


@pytest.mark.heavy
def test_an_empty_observation_is_read_as_it_is(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": {"train": ["blank"]}, "folder": str(tmp_path)}
    )
    with EnvironmentPool(spec, num_workers=1) as pool:
        batch, _ = play(pool, tiny_tokenizer, games=["blank"])
    member = batch.groups[0].members[0]
    assert [turn.observation for turn in member.episode.turns] == [""] * 3
    assert member.total_reward == 10
    assert [one.next_state for one in member.transitions] == [""] * 3
    assert draw_played(batch.groups, batch.step, 8, 0) == []  # nothing that a world model could learn


@pytest.mark.heavy
def test_what_was_played_is_drawn_for_the_world_model(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch, _ = play(pool, tiny_tokenizer)
    drawn = draw_played(batch.groups, batch.step, 5, 0)
    assert len({one.transition_id for one in drawn}) == 5
    assert drawn == draw_played(batch.groups, batch.step, 5, 0)
    for step, seed in ((batch.step, 1), (batch.step + 1, 0)):
        assert drawn != draw_played(batch.groups, step, 5, seed)
    for one in drawn:
        assert one.action == "go on"
        assert one.next_state.startswith("Room")
        assert one.next_state != one.observation


@pytest.mark.heavy
def test_games_are_a_fixed_draw_by_split(pool: EnvironmentPool) -> None:
    def games(splits: list[str] | None, count: int | None, held_out: bool) -> list[Game]:
        return draw_games(pool.spec, splits, count, 3, held_out, "data.episodes")

    assert sorted(game.task for game in games(None, None, False)) == ["a", "broken-c", "once-b"]
    assert [game.task for game in games(None, None, True)] == ["v"]
    assert games(None, 2, False) == games(None, None, False)[:2]
    assert [game.split for game in games(["validation"], None, False)] == ["validation"]
    with pytest.raises(
        ValueError, match=r"data\.episodes\.splits names 'tset'; the environment has train, validation"
    ):
        games(["tset"], None, True)
    alone = EnvironmentSpec("support.environments.RoomsEnv", {"folder": "x"})
    with pytest.raises(
        ValueError,
        match=r"data\.episodes\.num_games is not set; support\.environments\.RoomsEnv has no tasks",
    ):
        draw_games(alone, None, None, 0, False, "data.episodes")
    seeds = [game.seed for game in draw_games(alone, None, 3, 0, False, "data.episodes")]
    assert len(set(seeds)) == 3


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"data\.episodes\.group_size is 0"):
        Episodes(group_size=0)


@pytest.mark.heavy
def test_an_environments_own_truncation_ends_an_episode_and_termination_comes_first(
    pool: EnvironmentPool, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch, generator = play(pool, tiny_tokenizer, games=("cut", "both", "a"), group_size=1)
    episodes = [group.members[0].episode for group in batch.groups]
    assert [(one.game, len(one.turns), one.truncated) for one in episodes] == [
        ("cut", 2, True),
        ("both", 2, False),
        ("a", 3, False),
    ]
    assert generator.batches == [3, 3, 1]
