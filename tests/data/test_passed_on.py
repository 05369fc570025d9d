"""Each setting of the data reaches whoever acts on it, off its default and unchanged."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_testing import Recorder, make_transition
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data import collection as collecting
from rwml_lightning.data import demonstrations, games, generated_games
from rwml_lightning.data.action_prompts import ActionPrompt
from rwml_lightning.data.behaviour import ModelBehaviour, RandomBehaviour, make_behaviour
from rwml_lightning.data.branches import ExpertEpisode, ExpertGame, ExpertStep
from rwml_lightning.data.chat_format import ChatFormat, fingerprint
from rwml_lightning.data.collection import Collection, Job, Played, collect, list_jobs, play_branches
from rwml_lightning.data.demonstrations import Demonstrations
from rwml_lightning.data.episodes import View, episode_seed
from rwml_lightning.data.games import GameSource, Play, PlayEvaluation
from rwml_lightning.data.generated_games import GeneratedGames, make_games
from rwml_lightning.data.play import EpisodePlayer, Game
from rwml_lightning.data.reflections import Reflection
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.schema import Episode, Sampling
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec(
    "fake_games.RoomsEnv", {"games": {"train": ["a", "b", "c"], "validation": ["v"]}, "folder": "x"}
)


class Pool(Recorder):
    """Stands for a pool of environments."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self.calls.append("closed")


def episode_of(job: Job) -> Episode:
    return Episode(job.episode_id, "e", job.game, "t", 0, (), "o")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show."""
    shown = io.StringIO()

    def terminal(**options: Any) -> Terminal:
        assert options == {"stderr": True}
        return Terminal(file=shown, force_terminal=True, width=140, color_system=None)

    for module in (collecting, demonstrations, generated_games):
        monkeypatch.setattr(module, "Terminal", terminal)
    return shown


SETTINGS: dict[str, Any] = {
    "expert_share": 0.25, "invalid_share": 0.5, "max_new_tokens": 7, "num_environments": 3, "num_workers": 5,
    "step_timeout_s": 9.0, "prompt": ActionPrompt(history_turns=1), "max_dropped_share": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("behaviour", ["random", "model", "branches"])
def test_what_a_collection_is_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, behaviour: Any
) -> None:
    pool, made, recorded = Pool(), Recorder("behaviour"), Recorder()
    making = Recorder(pool)
    monkeypatch.setattr(collecting, "EnvironmentPool", making)
    monkeypatch.setattr(collecting, "make_behaviour", made)
    calls: list[Any] = []

    def play(*arguments: Any) -> Any:
        calls.append(arguments)
        jobs = arguments[1]
        first = len(calls) == 1
        kept = jobs[1:] if first else jobs
        played = [
            Played(
                episode_of(job),
                [make_transition(transition_id=f"{job.episode_id}/0", split=job.split, kind="k")],
            )
            for job in kept
        ]
        return played, ({jobs[0].episode_id: "why"} if first else {})

    monkeypatch.setattr(collecting, "play", play if behaviour != "branches" else None)
    monkeypatch.setattr(collecting, "play_branches", play if behaviour == "branches" else None)
    collection = Collection(behaviour, **SETTINGS)
    path, chat, context = tmp_path / "t.parquet", Recorder(), Recorder()
    collect(path, SPEC, None, collection, 4, "generator", chat, context, recorded)  # type: ignore[arg-type]
    jobs = list(list_jobs(SPEC, collection, 4))
    assert making.calls == [(SPEC, 5, 9.0)]
    if behaviour == "branches":
        assert made.calls == []
        assert calls == [(pool, jobs[:3], collection, SPEC.id, 4), (pool, jobs[3:], collection, SPEC.id, 4)]
    else:
        assert made.calls == [
            (behaviour, 0.25, 0.5, 7, 4, "generator", chat, context, ActionPrompt(history_turns=1))
        ]
        assert calls == [(pool, part, "behaviour", collection, SPEC.id, 4) for part in (jobs[:3], jobs[3:])]
    assert recorded.calls == [
        (1, 2, list(map(episode_of, jobs[1:3]))),
        (2, 2, list(map(episode_of, jobs[3:]))),
    ]
    assert [t.transition_id for t in read_transitions(path)] == [f"{job.episode_id}/0" for job in jobs[1:]]
    metadata = read_metadata(path)
    assert metadata.keys() == {"environment", "collection", "seed", "dropped_episodes"}
    assert (metadata["seed"], metadata["dropped_episodes"]) == (4, 1)
    assert metadata["environment"] == asdict(SPEC)
    assert metadata["collection"] == asdict(collection)
    shown = screen.getvalue()
    assert "collecting episodes" in shown
    assert "4/4" in shown
    assert shown.count("1 dropped") > 1  # beside the bar, and above the table
    assert "3 transitions of 3 episodes, 1 dropped" in shown


def test_games_are_generated_first_and_played_from_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recorder()
    monkeypatch.setattr(collecting, "make_games", made)

    def stop(*arguments: Any) -> Any:
        made.calls.append(arguments[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "list_jobs", stop)
    wanted = GeneratedGames("folder")
    with pytest.raises(KeyboardInterrupt):
        collect(
            tmp_path / "t",
            EnvironmentSpec("e", {"k": 1}),
            wanted,
            Collection(),
            6,
            None,
            Recorder(),
            Recorder(),
        )  # type: ignore[arg-type]
    assert made.calls == [(wanted, 6), EnvironmentSpec("e", {"data": "folder", "k": 1})]
    assert wanted.played_by(EnvironmentSpec("e", {"data": "own"})) == EnvironmentSpec("e", {"data": "own"})


@pytest.mark.parametrize("model", [False, True])
def test_what_parts_are_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerBase, model: bool
) -> None:
    bound: list[Any] = []

    def check(*arguments: Any) -> None:
        bound.append(arguments)
        raise KeyboardInterrupt

    chat = ChatFormat(tiny_tokenizer, None, (7, 3))
    player = ModelBehaviour(Mark(model="m"), chat, Sampling(1), 0, context=9)
    monkeypatch.setattr(collecting, "check_settings", check)
    monkeypatch.setattr(collecting, "make_behaviour", lambda *_: player if model else "random")
    collection = Collection("random", num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "t.parquet", SPEC, None, collection, 2, None, Recorder(), Recorder())  # type: ignore[arg-type]
    names = "\n".join(f"{job.split} {job.episode_id}" for job in list_jobs(SPEC, collection, 2))
    policy = {"model": "m", "chat": fingerprint(chat), "end_tokens": [3, 7], "context": 9}
    settings = {
        "environment": asdict(SPEC),
        "collection": asdict(collection),
        "seed": 2,
        "episodes": hashlib.sha256(names.encode()).hexdigest(),
        **({"policy": policy} if model else {}),
    }
    assert bound == [(tmp_path / "t.parquet.parts", settings)]


def test_who_plays_a_collection(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat, prompt = ChatFormat(tiny_tokenizer), ActionPrompt(history_turns=1)
    asked = Recorder(chat)
    player = make_behaviour("random", 0.25, 0.5, 7, 3, None, asked, asked, prompt)  # type: ignore[arg-type]
    assert isinstance(player, RandomBehaviour)
    assert (player.expert_share, player.invalid_share, player.seed) == (0.25, 0.5, 3)
    assert asked.calls == []  # no model is looked up
    model = make_behaviour("model", 0.25, 0.5, 7, 3, "generator", asked, lambda: 99, prompt)  # type: ignore[arg-type]
    assert isinstance(model, ModelBehaviour)
    assert (model.generator, model.chat, model.sampling) == ("generator", chat, Sampling(7))
    assert (model.seed, model.prompt, model.context) == (3, prompt, 99)


EXPERT = ExpertEpisode(
    episode_of(Job("a", 0, "train")),
    (ExpertStep(make_transition(0), View("t"), (make_transition(1), make_transition(2, observation=" "))),),
)


def test_branches_follow_the_expert_as_the_collection_says(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Recorder(([EXPERT], {"v#1": "why"}))
    monkeypatch.setattr(collecting, "follow_expert", followed)
    collection = Collection(max_steps=4, num_alternatives=6, history_turns=5)
    jobs = [Job("a", 0, "train"), Job("v", 1, "validation")]
    played, lost = play_branches("pool", jobs, collection, "env", 8)  # type: ignore[arg-type]
    expected = [
        ExpertGame("a#0", "a", episode_seed(8, "a#0"), "train"), ExpertGame("v#1", "v", episode_seed(8, "v#1"), "validation"),
    ]  # fmt: skip
    assert followed.calls == [("pool", "env", expected, 4, 8, 6, 5)]
    assert played == [
        Played(EXPERT.episode, [make_transition(0), make_transition(1)])
    ]  # silence is no sample
    assert lost == {"v#1": "why"}


@pytest.mark.parametrize(("source", "alternatives"), [("expert", 0), ("reflection", 6)])
def test_demonstrations_follow_the_expert_as_they_say(
    monkeypatch: pytest.MonkeyPatch, source: Any, alternatives: int
) -> None:
    followed = Recorder(([], {}))
    monkeypatch.setattr(demonstrations, "follow_expert", followed)
    wanted = Demonstrations("d", source, max_steps=4, reflection=Reflection(6))
    player = Mark(pool="pool", environment="env", seed=8)
    assert demonstrations._follow_expert(wanted, player, [Game("a", 5, "s"), Game("", 6)]) == ([], {})
    expected = [ExpertGame("expert-a#0", "a", 5, "train"), ExpertGame("expert-#0", "", 6, "train")]
    assert followed.calls == [("pool", "env", expected, 4, 8, alternatives, 4)]


def test_own_demonstrations_are_played_as_they_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokenizer: PreTrainedTokenizerBase,
    screen: io.StringIO,
) -> None:
    collected = Recorder(Mark(groups=()))
    player = Mark(collect=collected, chat=ChatFormat(tiny_tokenizer), prompt=ActionPrompt())
    wanted = Demonstrations(str(tmp_path / "d"), "policy", 3, 4, temperature=0.3, batch_size=2)
    played = [Game(name, 0) for name in "abc"]
    with pytest.raises(ValueError, match="none of 3 games was solved"):
        demonstrations.collect_demonstrations(wanted, player, played, 11)
    assert collected.calls == [
        ("demonstrations", number, part, 3, Sampling(11, 0.3), 4)
        for number, part in enumerate((played[:2], played[2:]))
    ]
    assert "demonstrations by policy" in screen.getvalue()


def test_generated_games_are_made_as_asked(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO) -> None:
    from rwml_lightning.envs.alfworld import generate

    calls: list[Any] = []

    def generate_games(folder: str, count: int, **settings: Any) -> None:
        settings.pop("progress")(count, count)
        calls.append((folder, count, settings))

    monkeypatch.setattr(generate, "generate_games", generate_games)
    make_games(GeneratedGames("f", 3, 2, "tiny", ["look"], 4), 9)
    same = {"seed": 9, "difficulty": "tiny", "task_types": ["look"], "num_workers": 4}
    assert calls == [("f", 3, {**same, "split": "train"}), ("f", 2, {**same, "split": "validation"})]
    for shown in ("generating train games", "3/3", "generating validation games", "2/2"):
        assert shown in screen.getvalue()
    make_games(GeneratedGames("f"), 9)
    assert calls[-1][2]["task_types"] == generate.TASK_TYPES


def make_source(**settings: Any) -> GameSource:
    play = Play(ActionPrompt(history_turns=1), Sampling(9, 0.7), **settings)
    return GameSource(play, SPEC, None, 3, 0.4)


def test_games_are_played_as_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, made = Recorder(Pool()), Recorder(Mark(pool=Pool(), chat=None))
    monkeypatch.setattr(games, "EnvironmentPool", pool)
    monkeypatch.setattr(games, "EpisodePlayer", made)
    source = make_source(num_workers=4, step_timeout_s=8.0, success_reward=2.0, invalid_penalty=0.3)
    player: Any = source.player("generator", "chat", 77)  # type: ignore[arg-type]
    assert pool.calls == [(SPEC, 4, 8.0)]
    arguments = (pool.answer, SPEC.id, "generator", ActionPrompt(history_turns=1), "chat", 3, 77, 2.0, 0.3)
    assert made.calls == [(arguments, {"max_dropped_share": 0.4})]
    assert source.player("other", "later", None) is player  # type: ignore[arg-type]
    assert player.chat == "later"
    source.close()
    assert player.pool.calls == ["closed"]
    source.close()
    assert player.pool.calls == ["closed"]


def test_a_player_keeps_its_settings() -> None:
    plain: Any = EpisodePlayer("pool", "env", "generator", "prompt", "chat", 3)  # type: ignore[arg-type]
    assert (plain.context, plain.success_reward, plain.invalid_penalty) == (None, 1.0, 0.0)
    assert (plain.attempts, plain.max_dropped_share) == (2, 0.1)
    own: Any = EpisodePlayer("pool", "env", "generator", "prompt", "chat", 3, 5, 2.0, 0.5, 4, 0.6)  # type: ignore[arg-type]
    assert (own.pool, own.environment, own.generator, own.prompt, own.chat) == (
        "pool",
        "env",
        "generator",
        "prompt",
        "chat",
    )
    assert (own.seed, own.context, own.success_reward, own.invalid_penalty) == (3, 5, 2.0, 0.5)
    assert (own.attempts, own.max_dropped_share) == (4, 0.6)


@pytest.mark.parametrize(
    ("stage", "test", "splits", "num_games", "key"),
    [
        ("fit", None, ["validation"], 2, "data.play.validation"),
        ("validate", PlayEvaluation(["train"], 7), ["validation"], 2, "data.play.validation"),
        ("test", None, ["validation"], None, "data.play.validation"),
        ("test", PlayEvaluation(["train"], 7), ["train"], 7, "data.play.test"),
    ],
)
def test_which_games_a_stage_lists(
    monkeypatch: pytest.MonkeyPatch, stage: str, test: Any, splits: Any, num_games: Any, key: str
) -> None:
    listed = Recorder(["games"])
    monkeypatch.setattr(games, "list_games", listed)
    how = PlayEvaluation(["validation"], 2, max_steps=4)
    source = make_source(validation=how, test=test, splits=["train"], num_games=5)
    source.set_up(stage)
    training = [(SPEC, ["train"], 5, 3, False, "data.play")] if stage == "fit" else []
    assert listed.calls == [*training, (SPEC, splits, num_games, 3, True, key)]
    assert source.train == (["games"] if stage == "fit" else [])
    assert source.held_out == ["games"]
    expected = how if stage != "test" else test or replace(how, num_games=None)
    assert source.evaluation == expected


def test_games_to_learn_from_get_the_steps_seed_and_generated_ones_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected, made = Recorder(), Recorder()
    monkeypatch.setattr(games, "make_games", made)
    source = make_source(group_size=2, max_steps=6)
    source.rollout(Mark(collect=collected), "policy_grpo", 7, [Game("a", 5, "s")])
    seeded = [Game("a", derive_seed(5, 7), "s")]
    assert collected.calls == [("policy_grpo", 7, seeded, 2, Sampling(9, 0.7), 6)]
    source.prepare()
    assert made.calls == []
    generated = GameSource(Play(), SPEC, GeneratedGames("f"), 3, 0.1)
    generated.prepare()
    assert made.calls == [(GeneratedGames("f"), 3)]
    assert generated.environment.kwargs == {"data": "f", **SPEC.kwargs}
