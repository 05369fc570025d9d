"""Who acts: what is drawn, followed, repeated or asked of a model, turn by turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.envs import Observation
from rwml_lightning.episodes.actors import ExpertActor, ListActor, ModelActor, RandomActor
from rwml_lightning.episodes.loop import Act
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Completion, Sampling, Turn
from rwml_lightning.seeds import derive_seed


def make_state(
    turns: int = 0, admissible: Sequence[str] = ("go on", "wait"), episode_id: str = "g#0", **changes: Any
) -> EpisodeState:
    seen = Observation("here", info={"task": "win", "admissible_actions": admissible})
    return EpisodeState(episode_id, seen, seen, turns=[Turn("o", "a")] * turns, **changes)


def make_letters(turns: int, plan: tuple[str, ...] = (), known: tuple[str, ...] = ()) -> EpisodeState:
    return make_state(turns, ("b", "a", "c"), walkthrough=plan, known_actions={"a", *known})


def test_random_play_is_drawn_by_episode_and_turn_and_follows_the_plan_by_stretches_of_four() -> None:
    for seed in (0, 1):
        player = RandomActor(seed, 0.5, 0.5)
        assert player.needs_walkthrough
        played = 0
        for turn in range(40):
            (act,) = player.act([make_letters(turn, tuple("xyz"), ("q", "p"))])
            rng = random.Random(derive_seed(seed, "act", "g#0", turn))
            follows = random.Random(derive_seed(seed, "stretch", "g#0", turn // 4)).random() < 0.5
            if follows and played < 3:
                expected, played = "xyz"[played], played + 1
            else:
                expected = rng.choice(["p", "q"]) if rng.random() < 0.5 else rng.choice(["a", "b", "c"])
            assert act == Act(expected)
        assert played == 3


def test_shares_of_0_and_1_leave_nothing_to_chance() -> None:
    for turn in range(20):
        invalid = RandomActor(0, 0.0, 1.0).act([make_letters(turn, known=("q",))])
        plain = RandomActor(0).act([make_letters(turn, ("x",), ("q",))])
        unknown = RandomActor(0, 0.0, 1.0).act([make_letters(turn)])  # nothing that was admissible before
        assert invalid == [Act("q")]
        assert {act.action for act in (*plain, *unknown)} <= set("abc")
    assert not RandomActor(0).needs_walkthrough


def test_random_actions_follow_from_seed_and_place() -> None:
    def actions(seed: int) -> list[str]:
        player = RandomActor(seed)
        return [player.act([make_state(turns)])[0].action for turns in range(30)]

    assert actions(0) == actions(0) != actions(1)
    assert set(actions(0)) == {"go on", "wait"}


def test_the_walkthrough_is_played_in_order_and_again_after_a_retry() -> None:
    player = RandomActor(0, expert_share=1.0)
    for _ in range(2):
        played = [player.act([make_state(n, walkthrough=("x", "y", "z"))])[0].action for n in range(3)]
        assert played == ["x", "y", "z"]
    assert player.act([make_state(3, walkthrough=("x", "y", "z"))])[0].action in ("go on", "wait")


def test_random_play_needs_admissible_actions() -> None:
    with pytest.raises(
        ValueError, match=r"g#0: the environment names no admissible actions .*set it to 'model'"
    ):
        RandomActor(0).act([make_state(admissible=[])])


def test_an_expert_follows_the_solution_to_its_end() -> None:
    actor = ExpertActor()
    assert actor.needs_walkthrough
    states = [make_state(turns, walkthrough=("x", "y")) for turns in range(4)]
    assert actor.act([*states, make_state()]) == [Act("x"), Act("y"), None, None, None]
    assert actor.act([]) == []


def test_a_list_is_repeated_by_the_name_of_the_episode() -> None:
    actor = ListActor({"g#0": ("x", "y"), "h#0": ()})
    assert not actor.needs_walkthrough
    states = [
        make_state(1),
        make_state(0, episode_id="h#0"),
        make_state(0),
        make_state(2, walkthrough=("z",) * 9),
    ]
    assert actor.act(states) == [Act("y"), None, Act("x"), None]


class ScriptedGenerator:
    """Answers every prompt with the same text."""

    max_model_len: int | None = None
    policy_version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self.ids = ChatFormat(tokenizer).encode_label((), text)
        self.calls: list[tuple[Any, Sampling, Any]] = []

    @property
    def completion(self) -> Completion:
        """What it answers."""
        return Completion(self.ids, (0.0,) * len(self.ids), "stop", 0)

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> list[list[Completion]]:
        self.calls.append((prompts, sampling, seeds))
        return [[self.completion] * len(group) for group in seeds]


def make_actor(
    tokenizer: PreTrainedTokenizerBase, text: str, context: int | None = None, **prompt: Any
) -> tuple[ModelActor, ScriptedGenerator]:
    generator = ScriptedGenerator(tokenizer, text)
    policy = PolicyClient(generator, ChatFormat(tokenizer), context)  # type: ignore[arg-type]
    actor = ModelActor(
        policy, ActionPrompt(**prompt), Sampling(32), lambda name, turn: derive_seed(7, name, turn)
    )
    return actor, generator


def test_a_model_reads_the_view_and_keeps_the_tokens_that_it_read_and_wrote(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    player, generator = make_actor(tiny_tokenizer, "<think>a way</think><action>wait</action>")
    assert not player.needs_walkthrough
    states = [make_state(), make_state(1)]
    acts = player.act(states)
    ((prompts, sampling, seeds),) = generator.calls
    assert prompts == [player.prompt.encode(player.policy.chat, state.view) for state in states]
    assert sampling == Sampling(32, temperature=1.0)
    assert seeds == [[derive_seed(7, "g#0", turn)] for turn in (0, 1)]
    assert acts == [Act("wait", "a way", ids, generator.completion) for ids in prompts]
    assert "Admissible actions: go on, wait" in tiny_tokenizer.decode(prompts[0])


def test_episodes_that_read_the_same_share_one_prompt(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    player, generator = make_actor(tiny_tokenizer, "<action>wait</action>")
    states = [make_state(episode_id=name) for name in ("g#0", "g#1")]
    states.insert(1, make_state(admissible=["other"], episode_id="h#0"))
    acts = player.act(states)
    ((prompts, _, seeds),) = generator.calls
    assert len(prompts) == 2
    assert seeds == [
        [derive_seed(7, "g#0", 0), derive_seed(7, "g#1", 0)],
        [derive_seed(7, "h#0", 0)],
    ]
    assert [act and act.prompt_ids for act in acts] == [prompts[0], prompts[1], prompts[0]]


def test_a_model_that_plays_a_conversation_goes_on_with_its_own_tokens(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    player, generator = make_actor(tiny_tokenizer, "<action>wait</action>", layout="conversation")
    for turns in range(3):
        player.act([make_state(turns)])
    first, second, third = (tuple(prompts[0]) for prompts, _, _ in generator.calls)
    assert second[: len(first) + len(generator.ids)] == first + tuple(generator.ids)
    assert third[: len(second)] == second
    player.act([make_state()])  # played again from its start
    assert tuple(generator.calls[-1][0][0]) == first


def test_an_episode_that_no_longer_fits_is_not_played_on(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    length = len(make_actor(tiny_tokenizer, "")[0].act([make_state()])[0].prompt_ids)  # type: ignore[union-attr]
    player, generator = make_actor(tiny_tokenizer, "<action>wait</action>", length + 32)
    long = make_state()
    long.last = Observation("x" * 900)
    assert [act and act.action for act in player.act([long, make_state()])] == [None, "wait"]
    assert len(generator.calls[0][0]) == 1
    assert player.act([long]) == [None]
    assert len(generator.calls) == 1  # nothing is asked for what does not fit
    tight, _ = make_actor(tiny_tokenizer, "<action>wait</action>", length + 31)
    assert tight.act([make_state()]) == [None]
