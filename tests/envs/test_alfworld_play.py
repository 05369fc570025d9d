"""The policy stage on the real engine: an expert's answers solve generated games and the real ones, by split and in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.episodes import Episodes, EpisodeSource, GameEvaluation
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.episodes.expert import follow_expert
from rwml_lightning.episodes.loop import Start
from rwml_lightning.evaluation import summarise_episodes
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Completion, Episode, EpisodeBatch, Sampling

PROMPT = ActionPrompt("conversation", system="", user="{observation}\n{task}", reply="")


class Expert:
    """Answers each game's prompt by the next action of its walkthrough; the prompt begins with room and task, and no two games share both."""

    policy_version = 0
    max_model_len = None

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, plans: dict[str, list[str]], wrong_turns: int
    ) -> None:
        self.tokenizer, self.plans, self.wrong_turns = tokenizer, plans, wrong_turns
        self.chat = ChatFormat(tokenizer)
        self.turn = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        place, found = self.turn - self.wrong_turns, []
        self.turn += 1
        for prompt, group in zip(prompts, seeds, strict=True):
            text = self.tokenizer.decode(list(prompt), skip_special_tokens=True)
            (plan,) = (plan for beginning, plan in self.plans.items() if beginning in text)
            action = "dance" if place < 0 else plan[place]
            ids = self.chat.encode_label(prompt, f"<think>on</think><action>{action}</action>")
            found.append([Completion(ids, (-1.0,) * len(ids), "stop", 0)] * len(group))
        return found


def begin(episode: Episode) -> str:
    """What is read first, by which the games are told apart."""
    return f"{episode.turns[0].observation}\n{episode.task}"


def play(
    folder: Path, splits: Sequence[str], tokenizer: PreTrainedTokenizerBase, wrong_turns: int = 0
) -> tuple[EpisodeBatch, dict[str, list[str]]]:
    """Two episodes of every game, each with as many turns as the longest walkthrough has."""
    spec = EnvironmentSpec("rwml/ALFWorld-v0", {"data": str(folder)})
    tasks = spec.make().unwrapped.tasks  # type: ignore[attr-defined]
    games = [Start(f"{task}#0", task, 0) for split in splits for task in tasks[split]]
    with EnvironmentPool(spec, num_workers=2, step_timeout_s=300) as pool:  # the planner takes seconds
        experts, _ = follow_expert(pool, games, 50, 0)
    plans = {begin(one.episode): [step.transition.action for step in one.steps] for one in experts}
    assert len(plans) == len(games)  # all are solved, and no two begin alike
    longest = max(map(len, plans.values()))
    evaluation = GameEvaluation(list(splits), episodes_per_game=2, max_turns=longest, temperature=1.0)
    settings = Episodes(
        PROMPT,
        Sampling(40),
        validation=evaluation,
        success_reward=10.0,
        invalid_penalty=0.1,
        max_dropped_share=0.0,
    )
    policy = PolicyClient(Expert(tokenizer, plans, wrong_turns), ChatFormat(tokenizer))  # type: ignore[arg-type]
    source = EpisodeSource(settings, policy, spec, 0)
    source.set_up("validate")
    draw = source.held_out()
    try:
        return draw.make(0, draw.items), plans
    finally:
        source.close()


def check(batch: EpisodeBatch, plans: dict[str, list[str]], splits: Sequence[str]) -> None:
    rows = {row.name: row for row in summarise_episodes(batch.groups)}
    assert set(splits) < set(rows)
    assert rows["all"].values["success"] == rows["all"].values["pass@2"] == 1
    assert rows["all"].values["invalid_actions"] == 0
    steps = [len(plans[begin(group.members[0].episode)]) for group in batch.groups]
    assert rows["all"].values["steps_to_success"] == pytest.approx(sum(steps) / len(steps))
    assert all(member.total_reward == 10 for group in batch.groups for member in group.members)
    kinds = [group.members[0].episode.kind for group in batch.groups]
    for kind in set(kinds):
        assert rows[kind].num_games == kinds.count(kind)


@pytest.mark.heavy
def test_generated_games_are_played_to_their_end(
    games: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch, plans = play(games, ["train", "validation"], tiny_tokenizer)
    check(batch, plans, ["train", "validation"])
    assert len(batch.groups) == 6 + 2


def test_the_real_games_are_played_to_their_end(
    real_games: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    splits = ["valid_seen", "valid_unseen"]
    batch, plans = play(real_games, splits, tiny_tokenizer)
    check(batch, plans, splits)
    assert len(batch.groups) == 12


@pytest.mark.heavy
def test_turns_run_out_and_are_counted(games: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    batch, plans = play(games, ["train", "validation"], tiny_tokenizer, wrong_turns=1)
    longest = max(map(len, plans.values()))
    for group in batch.groups:
        length = len(plans[begin(group.members[0].episode)])
        for member in group.members:
            turns = member.episode.turns
            assert not turns[0].valid
            assert all(turn.valid for turn in turns[1:])
            assert member.episode.success == (length < longest)
            assert member.episode.truncated == (length == longest)
            assert member.total_reward == pytest.approx(10 * member.episode.success - 0.1)
