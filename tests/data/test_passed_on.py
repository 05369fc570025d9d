"""Each setting of the data reaches whoever acts on it, off its default and unchanged."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning.data import collection as collecting
from rwml_lightning.data import demonstrations
from rwml_lightning.data.collection import Collection, collect, list_starts, play_chunk
from rwml_lightning.data.demonstrations import Demonstrations
from rwml_lightning.data.reflections import Reflection
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentSpec, Failure
from rwml_lightning.envs.alfworld.generated_games import GeneratedGames
from rwml_lightning.episodes.actors import ModelActor, RandomActor
from rwml_lightning.episodes.expert import ExpertEpisode, ExpertStep
from rwml_lightning.episodes.games import Game
from rwml_lightning.episodes.loop import Act, Outcome, Played, PlayedTurn, Start
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Episode, Sampling
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal
from support.policies import no_policy
from support.recorder import Recorder
from support.worlds import make_transition

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec(
    "support.environments.RoomsEnv", {"games": {"train": ["a", "b", "c"], "validation": ["v"]}, "folder": "x"}
)


class Pool(Recorder):
    """Stands for a pool of environments."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self.calls.append("closed")


def episode_of(start: Start) -> Episode:
    return Episode(start.episode_id, "e", start.game, "t", 0, (), "o")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show."""
    shown = io.StringIO()

    def terminal(**options: Any) -> Terminal:
        assert options == {"stderr": True}
        return Terminal(file=shown, force_terminal=True, width=140, color_system=None)

    for module in (collecting, demonstrations):
        monkeypatch.setattr(module, "Terminal", terminal)
    return shown


SETTINGS: dict[str, Any] = {
    "expert_share": 0.25, "invalid_share": 0.5, "max_new_tokens": 7, "num_environments": 3, "num_workers": 5,
    "step_timeout_s": 9.0, "prompt": ActionPrompt(history_turns=1), "max_dropped_share": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("behaviour", ["random", "model", "branches"])
def test_what_a_collection_is_made_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokenizer: PreTrainedTokenizerBase,
    screen: io.StringIO,
    behaviour: Any,
) -> None:
    pool, recorded = Pool(), Recorder()
    making, policy = Recorder(pool), Recorder(PolicyClient(Mark(model="m"), ChatFormat(tiny_tokenizer)))
    monkeypatch.setattr(collecting, "EnvironmentPool", making)
    calls: list[Any] = []

    def play(*arguments: Any) -> Any:
        calls.append(arguments)
        starts = arguments[1]
        first = len(calls) == 1
        kept = starts[1:] if first else starts
        sampled = [
            make_transition(transition_id=f"{start.episode_id}/0", split=start.split, kind="k")
            for start in kept
        ]
        silent = make_transition(transition_id="silent", observation=" ")
        return (
            [episode_of(start) for start in kept],
            [*sampled, silent],
            {starts[0].episode_id: "why"} if first else {},
        )

    monkeypatch.setattr(collecting, "play_chunk", play)
    collection = Collection(behaviour, **SETTINGS)
    path = tmp_path / "t.parquet"
    collect(path, SPEC, collection, 4, policy, recorded)
    starts = list(list_starts(SPEC, collection, 4))
    plays = behaviour == "model"
    assert policy.calls == [()] * plays  # no model is looked up where none plays
    assert making.calls == [(SPEC, 5, 9.0)]
    client = policy.answer if plays else None
    assert calls == [(pool, part, collection, 4, client) for part in (starts[:3], starts[3:])]
    assert recorded.calls == [
        (1, 2, list(map(episode_of, starts[1:3]))),
        (2, 2, list(map(episode_of, starts[3:]))),
    ]
    assert [t.transition_id for t in read_transitions(path)] == [
        f"{start.episode_id}/0" for start in starts[1:]
    ]  # silence is no sample
    metadata = read_metadata(path)
    assert metadata.keys() == {"environment", "collection", "seed", "dropped_episodes", *["policy"] * plays}
    assert (metadata["seed"], metadata["dropped_episodes"]) == (4, 1)
    assert metadata["environment"] == {"id": SPEC.id, "kwargs": SPEC.kwargs}
    assert metadata["collection"] == asdict(collection)
    shown = screen.getvalue()
    assert "collecting episodes" in shown
    assert "4/4" in shown
    assert shown.count("1 dropped") > 1  # beside the bar, and above the table
    assert "3 transitions of 3 episodes, 1 dropped" in shown


def test_games_are_generated_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    monkeypatch.setattr(GeneratedGames, "generate", lambda self, seed: order.append((self, seed)))

    def stop(spec: EnvironmentSpec, *_: Any) -> Any:
        order.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "list_starts", stop)
    spec = EnvironmentSpec("e", {"k": 1}, GeneratedGames("folder"))
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "t", spec, Collection(), 6, no_policy)
    assert order == [(GeneratedGames("folder"), 6), spec]


@pytest.mark.parametrize("model", [False, True])
def test_what_parts_are_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerBase, model: bool
) -> None:
    bound: list[Any] = []

    def check(*arguments: Any) -> None:
        bound.append(arguments)
        raise KeyboardInterrupt

    chat = ChatFormat(tiny_tokenizer, None, (7, 3))
    policy = PolicyClient(Mark(model="m"), chat, 9)
    monkeypatch.setattr(collecting, "check_settings", check)
    monkeypatch.setattr(GeneratedGames, "generate", lambda *_: None)
    collection = Collection("model" if model else "random", num_workers=1)
    spec = replace(SPEC, games=GeneratedGames("made"))
    monkeypatch.setattr(collecting, "list_starts", lambda *_: iter(STARTS))
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "t.parquet", spec, collection, 2, lambda: policy)
    said = {"model": "m", "chat": fingerprint(chat), "end_tokens": [3, 7], "context": 9}
    settings = {
        "environment": {"id": SPEC.id, "kwargs": {"data": "made", **SPEC.kwargs}},
        "collection": asdict(collection),
        "seed": 2,
        "episodes": hashlib.sha256(b"train a#0\nvalidation v#1").hexdigest(),
        **({"policy": said} if model else {}),
    }
    assert bound == [(tmp_path / "t.parquet.parts", settings)]


def test_who_plays_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Failure("raised", "why\nmore")
    episode = episode_of(STARTS[0])
    turns = tuple(PlayedTurn(View("t"), Act("a"), make_transition(n)) for n in range(2))
    state: Any = None
    played = Recorder(Outcome([Played(episode, turns, state), lost], {}))
    monkeypatch.setattr(collecting, "play", played)
    pool: Any = "pool"
    prompt = ActionPrompt(history_turns=1)
    own = {
        "max_turns": 4,
        "history_turns": 5,
        "expert_share": 0.25,
        "invalid_share": 0.5,
        "max_new_tokens": 7,
    }
    policy: Any = Mark()
    for behaviour in ("random", "model"):
        collection = Collection(behaviour, prompt=prompt, **own)  # type: ignore[arg-type]
        found = play_chunk(pool, STARTS, collection, 3, policy)
        assert found == ([episode], [make_transition(0), make_transition(1)], {"v#1": "why"})
    (one, first, chance, *rest), (_, _, model, *_) = played.calls
    assert (one, first, rest) == (pool, STARTS, [4, 5])
    assert isinstance(chance, RandomActor)
    assert (chance.expert_share, chance.invalid_share, chance.seed) == (0.25, 0.5, 3)
    assert isinstance(model, ModelActor)
    assert (model.policy, model.prompt, model.sampling) == (policy, prompt, Sampling(7))
    assert model.seed_of("a#0", 6) == derive_seed(3, "act", "a#0", 6)


STARTS = [Start("a#0", "a", 5), Start("v#1", "v", 6, "validation")]
EXPERT = ExpertEpisode(
    episode_of(STARTS[0]),
    (ExpertStep(make_transition(0), View("t"), (make_transition(1), make_transition(2, observation=" "))),),
)


def test_branches_follow_the_expert_as_the_collection_says(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Recorder(([EXPERT], {"v#1": "why"}))
    monkeypatch.setattr(collecting, "follow_expert", followed)
    collection = Collection("branches", max_turns=4, num_alternatives=6, history_turns=5)
    found = play_chunk("pool", STARTS, collection, 8, None)  # type: ignore[arg-type]
    assert followed.calls == [("pool", STARTS, 4, 8, 6, 5)]
    transitions = [make_transition(0), make_transition(1), make_transition(2, observation=" ")]
    assert found == ([EXPERT.episode], transitions, {"v#1": "why"})


@pytest.mark.parametrize(("source", "alternatives"), [("expert", 0), ("reflection", 6)])
def test_demonstrations_follow_the_expert_as_they_say(
    monkeypatch: pytest.MonkeyPatch, source: Any, alternatives: int
) -> None:
    followed = Recorder(([], {}))
    monkeypatch.setattr(demonstrations, "follow_expert", followed)
    wanted = Demonstrations("d", source, max_turns=4, reflection=Reflection(6))
    player = Mark(pool="pool", seed=8)
    assert demonstrations._follow_expert(wanted, player, [Game("a", 5, "s"), Game("", 6)]) == ([], {})
    expected = [Start("expert-a#0", "a", 5, "train"), Start("expert-#0", "", 6, "train")]
    assert followed.calls == [(("pool", expected, 4, 8, alternatives), {"history_turns": 4})]


def test_own_demonstrations_are_played_as_they_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_tokenizer: PreTrainedTokenizerBase,
    screen: io.StringIO,
) -> None:
    collected = Recorder(Mark(groups=()))
    player = Mark(collect=collected, policy=Mark(chat=ChatFormat(tiny_tokenizer)), prompt=ActionPrompt())
    wanted = Demonstrations(str(tmp_path / "d"), "policy", 3, max_turns=4, temperature=0.3, batch_size=2)
    played = [Game(name, 0) for name in "abc"]
    with pytest.raises(ValueError, match="none of 3 games was solved"):
        demonstrations.collect_demonstrations(wanted, player, played, 11)
    assert collected.calls == [
        ("demonstrations", number, part, 3, Sampling(11, 0.3), 4)
        for number, part in enumerate((played[:2], played[2:]))
    ]
    assert "demonstrations by policy" in screen.getvalue()
