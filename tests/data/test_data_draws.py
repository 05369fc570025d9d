"""What the data draws follows from the run's seed and from its place in the run, and from nothing else."""

from __future__ import annotations

import random
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_testing import Recorder, make_transition
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.batches import StepLoader, draw_played
from rwml_lightning.data.behaviour import ModelBehaviour, RandomBehaviour
from rwml_lightning.data.branches import ExpertStep, _other_actions
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.collection import Collection, list_jobs
from rwml_lightning.data.easy_samples import mark_easy
from rwml_lightning.data.episodes import EpisodeState, View, episode_seed
from rwml_lightning.data.games import list_games
from rwml_lightning.data.play import EpisodePlayer, Game
from rwml_lightning.data.reflections import Reflection, write_reflections
from rwml_lightning.data.rollouts import WorldModelRollouts, member_seeds
from rwml_lightning.data.selection import draw
from rwml_lightning.data.transitions import split_of_game
from rwml_lightning.envs import EnvironmentSpec, Observation
from rwml_lightning.schema import Completion, Sampling
from rwml_lightning.seeds import derive_seed

Mark: Any = SimpleNamespace
GAMES = {"train": ["a", "b", "c"], "more": ["d"], "valid_x": ["v"], "test": ["w"], "evaluation": ["x"]}
SPEC = EnvironmentSpec("fake_games.RoomsEnv", {"games": GAMES, "folder": "x"})
ALONE = EnvironmentSpec("fake_games.RoomsEnv", {"folder": "x"})


def in_order(items: Any, *place: Any, name: Any = lambda item: item) -> list[Any]:
    return sorted(items, key=lambda item: derive_seed(*place, name(item)))


def test_a_members_seed_is_of_stage_step_transition_and_member() -> None:
    for seed, stage, step in product((0, 1), ("a", "b"), (2, 3)):
        assert member_seeds(seed, stage, step, [make_transition(n) for n in (4, 5)], 2) == [
            [derive_seed(seed, stage, step, name, member) for member in (0, 1)] for name in ("t4", "t5")
        ]


@pytest.mark.parametrize("seed", [0, 1])
def test_orders_and_draws(seed: int) -> None:
    world = [make_transition(n, split="validation" if n % 3 == 0 else "train") for n in range(12)]
    for split in ("train", "validation"):
        own = [t for t in world if t.split == split]
        drawn = in_order(own, seed, "draw", name=lambda t: t.transition_id)
        assert [draw(world, split, count, seed) for count in (None, 2, 0)] == [drawn, drawn[:2], []]
    loader: Any = StepLoader(world, 5, lambda step, chosen: chosen, seed, 2)
    for step, chosen in enumerate(loader):
        number, index = divmod(step, 3)
        order = in_order(range(12), seed, "order", number)
        assert chosen == [world[i] for i in order[5 * index : 5 * index + 5]]
    names = [f"g{n}" for n in range(10)]
    ordered = in_order(names, seed, "split")
    assert split_of_game(names, seed, 0.3) == {
        name: "validation" if n < 3 else "train" for n, name in enumerate(ordered)
    }
    played = [make_transition(n) for n in range(6)]
    silent = [
        make_transition(7, action=""),
        make_transition(8, next_state=" \n"),
        make_transition(9, knowable=False),
    ]
    batch = Mark(step=4, groups=[Mark(members=[Mark(transitions=played[:4]), Mark(transitions=played[4:])]), Mark(members=[Mark(transitions=silent)])])  # fmt: skip
    drawn = in_order(played, seed, "played", 4, name=lambda t: t.transition_id)
    assert [draw_played(batch, count, seed) for count in (9, 2, 0)] == [drawn, drawn[:2], []]


def test_an_easy_transition_stays_by_its_own_seed() -> None:
    rewards = {f"t{n}": 1.0 for n in range(50)} | {"hard": 0.25}
    limit = sorted(derive_seed(3, "keep_easy", f"t{n}") for n in range(50))[20]
    for probability, count in ((limit / 2**31, 20), ((limit + 1) / 2**31, 21), (1.0, 50), (0.0, 0)):
        marks = mark_easy(rewards, 0.5, 0.3, probability, 3)
        assert marks.kept == {"hard"} | {
            n for n in marks.easy if derive_seed(3, "keep_easy", n) < probability * 2**31
        }
        assert len(marks.easy_kept) == count
    assert mark_easy(rewards, 0.25, 0.3, 1.0, 3).easy == rewards.keys()  # at the threshold is easy
    assert mark_easy(rewards, 0.26, 0.3, 1.0, 3).easy == rewards.keys() - {"hard"}
    found = mark_easy(rewards, None, 1.0, 1.0, 3)
    assert (found.tau_easy, found.easy) == (0.25, rewards.keys())


@pytest.mark.parametrize("held_out", [False, True])
def test_games_have_one_seed_for_their_life_and_a_fixed_order(held_out: bool) -> None:
    purpose = "held-out" if held_out else "train"
    splits = {"valid_x", "test", "evaluation"} if held_out else {"train", "more"}
    for seed in (0, 1):
        wanted = [
            Game(task, derive_seed(seed, purpose, task), split) for split in splits for task in GAMES[split]
        ]
        ordered = in_order(wanted, seed, "games", name=lambda game: game.task)
        assert list_games(SPEC, None, None, seed, held_out, "k") == ordered
        assert list_games(SPEC, None, 2, seed, held_out, "k") == ordered[:2]
        assert [g.task for g in list_games(SPEC, ["more"], None, seed, held_out, "k")] == ["d"]
        alone = [Game("", derive_seed(seed, purpose, number)) for number in range(2)]
        assert list_games(ALONE, None, 2, seed, held_out, "k") == alone
    with pytest.raises(ValueError, match=r"k\.num_games is not set"):
        list_games(ALONE, None, None, 0, held_out, "k")
    with pytest.raises(ValueError, match=r"k\.splits names 'no'; the environment has evaluation, more, test"):
        list_games(SPEC, ["train", "no"], None, 0, held_out, "k")


def test_without_games_of_a_sort_the_splits_are_named() -> None:
    spec = EnvironmentSpec("fake_games.RoomsEnv", {"games": {"b": ["x"], "a": []}, "folder": "x"})
    with pytest.raises(
        ValueError, match=r"has no held-out games; its splits are a, b: name some in k\.splits"
    ):
        list_games(spec, None, None, 0, True, "k")
    none = EnvironmentSpec("fake_games.RoomsEnv", {"games": {}, "folder": "x"})
    with pytest.raises(ValueError, match=r"has no train games; its splits are none: name some"):
        list_games(none, None, None, 0, False, "k")


@pytest.mark.parametrize("seed", [0, 1])
def test_jobs_mix_games_and_splits(seed: int) -> None:
    jobs = list(list_jobs(SPEC, Collection(episodes_per_game=2), seed))
    assert jobs == in_order(jobs, seed, "job", name=lambda job: job.episode_id)
    train = {"a", "b", "c", "d"}
    assert {(job.game, job.number, job.split) for job in jobs} == {
        (game, number, "train" if game in train else "validation") for game in "abcdvwx" for number in (0, 1)
    }
    for splits in (["train", "more"], ["valid_x", "test", "evaluation"]):  # of one sort alone: drawn by game
        names = [game for split in splits for game in GAMES[split]]
        drawn = split_of_game(names, seed, 0.4)
        jobs = list(list_jobs(SPEC, Collection(splits=splits, validation_share=0.4), seed))
        assert {job.game: job.split for job in jobs} == drawn
    jobs = list(list_jobs(ALONE, Collection(episodes_per_game=5, validation_share=0.4), seed))
    drawn = split_of_game([f"#{n}" for n in range(5)], seed, 0.4)
    assert {(job.game, job.episode_id): job.split for job in jobs} == {
        ("", name): split for name, split in drawn.items()
    }
    assert episode_seed(seed, "a#1") == derive_seed(seed, "episode", "a#1")


def make_state(turns: int, plan: tuple[str, ...] = (), known: tuple[str, ...] = ()) -> EpisodeState:
    seen = Observation("here", info={"admissible_actions": ("b", "a", "c")})
    state = EpisodeState("g#0", seen, seen, plan, known_actions={"a", *known})
    state.turns += [Mark()] * turns
    return state


def test_random_play_is_drawn_by_episode_and_turn_and_follows_the_plan_by_stretches_of_four() -> None:
    for seed in (0, 1):
        player = RandomBehaviour(0.5, 0.5, seed)
        played = 0
        for turn in range(40):
            ((action, thinking),) = player.act([make_state(turn, tuple("xyz"), ("q", "p"))])
            rng = random.Random(derive_seed(seed, "act", "g#0", turn))
            follows = random.Random(derive_seed(seed, "stretch", "g#0", turn // 4)).random() < 0.5
            if follows and played < 3:
                expected, played = "xyz"[played], played + 1
            else:
                expected = rng.choice(["p", "q"]) if rng.random() < 0.5 else rng.choice(["a", "b", "c"])
            assert (action, thinking) == (expected, "")
        assert played == 3


def test_shares_of_0_and_1_leave_nothing_to_chance() -> None:
    for turn in range(20):
        invalid = RandomBehaviour(0.0, 1.0, 0).act([make_state(turn, known=("q",))])
        plain = RandomBehaviour(0.0, 0.0, 0).act([make_state(turn, ("x",), ("q",))])
        unknown = RandomBehaviour(0.0, 1.0, 0).act([make_state(turn)])  # nothing that was admissible before
        assert invalid == [("q", "")]
        assert {action for action, _ in (*plain, *unknown)} <= set("abc")


class Generator:
    """Completes each prompt with the same tokens, and keeps what it was asked."""

    policy_version = 2
    max_model_len = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str = "<action>a</action>") -> None:
        self.ids = ChatFormat(tokenizer).encode_label((), text)
        self.calls: list[Any] = []

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> Any:
        self.calls.append((list(prompts), sampling, seeds))
        return [[Completion(self.ids, (0.0,) * len(self.ids), "stop", 2)] * len(row) for row in seeds]


def test_a_model_plays_by_episode_and_turn(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    generator: Any = Generator(tiny_tokenizer)
    player = ModelBehaviour(generator, ChatFormat(tiny_tokenizer), Sampling(8), 3)
    states = [make_state(0), make_state(0)]
    states[1].episode_id = "h#1"
    assert player.act(states) == [("a", "")] * 2
    for state in states:
        state.turns.append(Mark(observation="o", action="a"))
    player.act(states)
    assert [seeds for _, _, seeds in generator.calls] == [
        [[derive_seed(3, "act", name, turn)] for name in ("g#0", "h#1")] for turn in (0, 1)
    ]


def test_a_reflection_is_drawn_by_its_transition(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    generator: Any = Generator(tiny_tokenizer, "one\ntwo")
    chat, how = ChatFormat(tiny_tokenizer), Reflection(1, max_tokens=9, temperature=0.3)
    steps = [
        ExpertStep(make_transition(n), View("t"), (make_transition(n + 10, action="other"),) * (n != 1))
        for n in range(3)
    ]
    assert write_reflections(how, steps, generator, chat, 6) == ["one two", "", "one two"]
    ((prompts, sampling, seeds),) = generator.calls
    assert sampling == Sampling(9, 0.3)
    assert seeds == [[derive_seed(6, "reflection", name)] for name in ("t0", "t2")]
    assert prompts == [chat.encode_user("", how.ask(steps[n], chat.quote)) for n in (0, 2)]
    longest = max(map(len, prompts))
    for context, asked in ((longest + 9, 2), (longest + 8, 2 - sum(len(p) == longest for p in prompts))):
        generator.calls.clear()
        write_reflections(how, steps, generator, chat, 6, context)
        assert sum(len(prompts) for prompts, _, _ in generator.calls) == asked
    generator.calls.clear()
    assert write_reflections(how, steps[1:2], generator, chat, 6) == [""]
    assert generator.calls == []  # nothing to ask


def test_a_question_about_a_step_names_every_outcome_by_action() -> None:
    how = Reflection(user="{task}|{observation}|{outcomes}|{action}")
    step = ExpertStep(
        make_transition(0, action="b", next_state="B"), View("t"),
        (make_transition(1, action="c", next_state="C"), make_transition(2, action="a", next_state="A")),
    )  # fmt: skip
    assert how.ask(step) == "tidy up|You are in room 0.|- a: A\n- b: B\n- c: C|b"
    assert how.ask(step, str.upper) == "TIDY UP|YOU ARE IN ROOM 0.|- A: A\n- B: B\n- C: C|B"


def test_other_actions_are_drawn_of_those_that_the_expert_did_not_take() -> None:
    for seed, count in product((0, 1), (0, 1, 2, 5)):
        step = ExpertStep(make_transition(3, action="b"), View("t", admissible=("d", "b", "a", "c")))
        rng = random.Random(derive_seed(seed, "alternatives", "t3"))
        assert _other_actions(step, count, seed) == rng.sample(["a", "c", "d"], min(count, 3))


def test_a_turn_is_sampled_by_stage_step_game_seed_member_and_turn() -> None:
    player: Any = EpisodePlayer(None, "e", None, None, None, 4)  # type: ignore[arg-type]
    played = [Game("a", 5), Game("b", 6)]
    for place, member, turn in product((0, 1), (0, 2), (0, 3)):
        seed = derive_seed(4, "s", 7, played[place].task, played[place].seed, member, turn)
        assert player._sample_seed(("s", 7), played, (place, member), turn) == seed


def test_rollouts_are_sampled_and_timed_by_what_they_are_given(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    generator: Any = Generator(tiny_tokenizer, "<think>hm</think><next_state>x</next_state>")
    reward, prompt = (
        Mark(score=lambda _, texts: [Mark(reward=1.0, similarity=None, parts={}) for _ in texts]),
        Mark(
            encode=lambda chat, t: (1, int(t.transition_id[1:])), render=lambda t: f"asked {t.transition_id}"
        ),
    )
    control = Mark(apply=Recorder())
    chat = ChatFormat(tiny_tokenizer)
    world = [make_transition(n) for n in (4, 5)]
    plain = WorldModelRollouts(generator, reward, prompt, chat, 9)
    assert (plain.max_dropped_share, plain.control) == (0.1, None)
    batch = plain.collect("s", 3, world, 2, Sampling(8, 0.4))
    assert generator.calls == [([(1, 4), (1, 5)], Sampling(8, 0.4), member_seeds(9, "s", 3, world, 2))]
    assert (batch.step, batch.policy_version, batch.temperature, batch.dropped_groups) == (3, 2, 0.4, 0)
    assert [(group.prompt_ids, group.prompt) for group in batch.groups] == [
        ((1, 4), "asked t4"),
        ((1, 5), "asked t5"),
    ]
    for group in batch.groups:
        assert [(p.thinking, p.next_state, p.advantage, p.member) for p in group.predictions] == [
            ("hm", "x", 0.0, 0),
            ("hm", "x", 0.0, 1),
        ]
    control.apply = lambda *arguments: seen.append(arguments) or arguments[-1]
    seen: list[Any] = []
    WorldModelRollouts(generator, reward, prompt, chat, 9, control=control).collect(
        "s", 3, world, 2, Sampling(8)
    )
    ((own, position, transitions, predictions, scores),) = seen
    assert (own, position, transitions, predictions) == (reward, ("s", 3), world, [["x", "x"]] * 2)
    assert [len(row) for row in scores] == [2, 2]
