"""What the data draws follows from the run's seed and from its place in the run, and from nothing else."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_callbacks.easy_samples.marks import mark_easy
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data.collection import Collection, list_starts
from rwml_lightning.data.labels import draw_played
from rwml_lightning.data.loader import Draw, StepLoader
from rwml_lightning.data.reflections import Reflection, write_reflections
from rwml_lightning.data.rollouts import WorldModelRollouts, member_seeds
from rwml_lightning.data.selection import draw
from rwml_lightning.data.transitions import split_of_game
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.episodes.expert import ExpertStep
from rwml_lightning.episodes.games import episode_name
from rwml_lightning.episodes.loop import Start
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Completion, Sampling
from rwml_lightning.seeds import derive_seed
from support.recorder import Recorder
from support.worlds import make_transition

Mark: Any = SimpleNamespace
GAMES = {"train": ["a", "b", "c"], "more": ["d"], "valid_x": ["v"], "test": ["w"], "evaluation": ["x"]}
SPEC = EnvironmentSpec("support.environments.RoomsEnv", {"games": GAMES, "folder": "x"})
ALONE = EnvironmentSpec("support.environments.RoomsEnv", {"folder": "x"})


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
    loader: Any = StepLoader(Draw(world, 5, lambda step, chosen: chosen, 2), seed)
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
    groups = [Mark(members=[Mark(transitions=played[:4]), Mark(transitions=played[4:])]), Mark(members=[Mark(transitions=silent)])]  # fmt: skip
    drawn = in_order(played, seed, "played", 4, name=lambda t: t.transition_id)
    assert [draw_played(groups, 4, count, seed) for count in (9, 2, 0)] == [drawn, drawn[:2], []]


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


@pytest.mark.parametrize("seed", [0, 1])
def test_starts_mix_games_and_splits_and_have_their_own_seeds(seed: int) -> None:
    starts = list(list_starts(SPEC, Collection(episodes_per_game=2), seed))
    assert starts == in_order(starts, seed, "job", name=lambda start: start.episode_id)
    train = {"a", "b", "c", "d"}
    names = [(game, episode_name(game, number)) for game in "abcdvwx" for number in (0, 1)]
    assert len(starts) == len(names)
    assert set(starts) == {
        Start(name, game, derive_seed(seed, "episode", name), "train" if game in train else "validation")
        for game, name in names
    }
    for splits in (["train", "more"], ["valid_x", "test", "evaluation"]):  # of one sort alone: drawn by game
        names = [game for split in splits for game in GAMES[split]]
        drawn = split_of_game(names, seed, 0.4)
        starts = list(list_starts(SPEC, Collection(splits=splits, validation_share=0.4), seed))
        assert {start.game: start.split for start in starts} == drawn
    starts = list(list_starts(ALONE, Collection(episodes_per_game=5, validation_share=0.4), seed))
    drawn = split_of_game([f"#{n}" for n in range(5)], seed, 0.4)
    assert {(start.game, start.episode_id): start.split for start in starts} == {
        ("", name): split for name, split in drawn.items()
    }


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


def test_a_reflection_is_drawn_by_its_transition(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    generator: Any = Generator(tiny_tokenizer, "one\ntwo")
    chat, how = ChatFormat(tiny_tokenizer), Reflection(1, max_tokens=9, temperature=0.3)
    steps = [
        ExpertStep(make_transition(n), View("t"), (make_transition(n + 10, action="other"),) * (n != 1))
        for n in range(3)
    ]
    policy = PolicyClient(generator, chat)
    assert write_reflections(how, steps, policy, 6) == ["one two", "", "one two"]
    ((prompts, sampling, seeds),) = generator.calls
    assert sampling == Sampling(9, 0.3)
    assert seeds == [[derive_seed(6, "reflection", name)] for name in ("t0", "t2")]
    assert prompts == [chat.encode_user("", how.ask(steps[n], chat.quote)) for n in (0, 2)]
    longest = max(map(len, prompts))
    for context, asked in ((longest + 9, 2), (longest + 8, 2 - sum(len(p) == longest for p in prompts))):
        generator.calls.clear()
        write_reflections(how, steps, PolicyClient(generator, chat, context), 6)
        assert sum(len(prompts) for prompts, _, _ in generator.calls) == asked
    generator.calls.clear()
    assert write_reflections(how, steps[1:2], policy, 6) == [""]
    assert generator.calls == []  # nothing to ask


def test_a_question_about_a_step_names_every_outcome_by_action() -> None:
    how = Reflection(user="{task}|{observation}|{outcomes}|{action}")
    step = ExpertStep(
        make_transition(0, action="b", next_state="B"), View("t"),
        (make_transition(1, action="c", next_state="C"), make_transition(2, action="a", next_state="A")),
    )  # fmt: skip
    assert how.ask(step) == "tidy up|You are in room 0.|- a: A\n- b: B\n- c: C|b"
    assert how.ask(step, str.upper) == "TIDY UP|YOU ARE IN ROOM 0.|- A: A\n- B: B\n- C: C|B"


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
    policy = PolicyClient(generator, chat)
    plain = WorldModelRollouts(policy, reward, prompt, 9)
    assert plain.control is None
    batch = plain.collect("s", 3, world, 2, Sampling(8, 0.4))
    assert generator.calls == [([(1, 4), (1, 5)], Sampling(8, 0.4), member_seeds(9, "s", 3, world, 2))]
    assert (batch.step, batch.policy_version, batch.temperature, batch.dropped) == (3, 2, 0.4, ())
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
    WorldModelRollouts(policy, reward, prompt, 9, control=control).collect("s", 3, world, 2, Sampling(8))
    ((own, position, transitions, predictions, scores),) = seen
    assert (own, position, transitions, predictions) == (reward, ("s", 3), world, [["x", "x"]] * 2)
    assert [len(row) for row in scores] == [2, 2]
