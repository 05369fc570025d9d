"""The environment loop: what becomes of each episode, in which order, and what is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Failure, Observation
from rwml_lightning.episodes import loop
from rwml_lightning.episodes.actors import ListActor
from rwml_lightning.episodes.loop import Act, Outcome, Played, PlayedTurn, Start, play
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Transition, Turn

Mark: Any = SimpleNamespace
ACT = {"admissible_actions": ["go", "wait"], "task": "t"}


class Pool:
    """Environments in one process.

    Args:
        length: Steps of an episode.
        plan: Walkthrough of every slot, or of each by number.
        broken: By slot: number of attempts that raise at their first step.
    """

    spec = Mark(id="env")

    def __init__(
        self, length: int = 2, plan: Any = ("go",) * 5, broken: dict[int, int] | None = None
    ) -> None:
        self.length, self.plan, self.broken = length, plan, broken or {}
        self.resets: list[Any] = []
        self.plans_of: list[list[int]] = []
        self.steps: list[dict[int, str]] = []
        self.numbers: dict[int, int] = {}

    def reset_many(self, episodes: Any) -> dict[int, Any]:
        asked = list(episodes)
        self.resets.append(asked)
        self.numbers |= {slot: 0 for slot, _, _ in asked}
        return {slot: Observation(f"{task} 0", info=ACT) for slot, _, task in asked}

    def walkthrough_many(self, slots: Any) -> dict[int, Any]:
        self.plans_of.append(list(slots))
        return {slot: self.plan[slot] if isinstance(self.plan, dict) else self.plan for slot in slots}

    def step_many(self, actions: Any) -> dict[int, Any]:
        self.steps.append(dict(actions))
        answers: dict[int, Any] = {}
        for slot in actions:
            self.numbers[slot] += 1
            if self.broken.get(slot, 0) >= len(self.resets):
                answers[slot] = Failure("raised", f"slot {slot} broke\nmore")
            else:
                number = self.numbers[slot]
                done = number == self.length
                answers[slot] = Observation(f"at {number}", float(done), done, info=ACT)
        return answers


class Player:
    """Goes on, and ends the episode "b" at once."""

    needs_walkthrough = False

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.plans: list[Any] = []

    def act(self, states: Sequence[EpisodeState]) -> list[Act | None]:
        self.seen.append([state.episode_id for state in states])
        self.plans += [state.walkthrough for state in states]
        return [None if state.episode_id == "b#0" else Act("go", "hm") for state in states]


class Follower(Player):
    """Asks for the solution."""

    needs_walkthrough = True


def run(pool: Any, starts: Sequence[Start], actor: Any, max_turns: int = 9, **settings: Any) -> Outcome:
    return play(pool, starts, actor, max_turns, **settings)


def messages(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_outcomes_stand_in_the_order_of_the_starts_and_failures_are_tried_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(3, broken={0: 1, 2: 9})
    starts = [
        Start("a#0", "a", 5),
        Start("b#0", "b", 6),
        Start("c#0", "c", 7),
        Start("#0", "", 8, "validation"),
    ]
    player = Player()
    outcome = run(pool, starts, player, max_turns=2, history_turns=1)
    first = [(0, 5, "a"), (1, 6, "b"), (2, 7, "c"), (3, 8, None)]
    assert pool.resets == [
        first,
        [first[0], first[2]],
    ]  # a lost episode begins again from its own seed, in its own slot
    assert player.seen == [["a#0", "b#0", "c#0", "#0"], ["#0"], ["a#0", "c#0"], ["a#0"]]
    a, b, c, alone = outcome.episodes
    assert c == Failure("raised", "slot 2 broke\nmore")
    assert isinstance(a, Played)
    assert isinstance(b, Played)
    assert isinstance(alone, Played)
    assert outcome.played == [a, b, alone]
    assert [(one.episode.episode_id, len(one.turns), one.episode.truncated, one.episode.seed) for one in (a, b, alone)] == [
        ("a#0", 2, True, 5), ("b#0", 0, True, 6), ("#0", 2, True, 8),
    ]  # fmt: skip
    assert (b.episode.environment, b.episode.game, b.episode.final_observation) == ("env", "b", "b 0")
    before = Turn("a 0", "go", True, 0.0, "hm")
    assert a.episode.turns == (before, Turn("at 1", "go", True, 0.0, "hm"))
    assert a.turns[1] == PlayedTurn(
        View("t", (before,), "at 1", ("go", "wait"), Observation("at 1").messages),
        Act("go", "hm"),
        Transition("a#0/1", "env", "a", "t", (before,), "at 1", "go", "at 2"),
    )
    assert [turn.transition.split for turn in alone.turns] == ["validation"] * 2
    assert [len(turn.transition.history) for turn in alone.turns] == [0, 1]
    assert messages(caplog, "failed") == [f"episode {name} failed and {fate}" for name, fate in (
        ("a#0", "is tried again"), ("c#0", "is tried again"), ("c#0", "is dropped"))]  # fmt: skip
    assert messages(caplog, "broke") == [f"episode {name}: slot {slot} broke\nmore" for name, slot in (
        ("a#0", 0), ("c#0", 2), ("c#0", 2))]  # fmt: skip


def test_an_episode_may_be_tried_once_alone(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(broken={0: 1})
    outcome = run(pool, [Start("a#0", "a", 5)], Player(), attempts=1)
    assert [type(one) for one in outcome.episodes] == [Failure]
    assert outcome.played == []
    assert len(pool.resets) == 1
    assert messages(caplog, "failed") == ["episode a#0 failed and is dropped"]


def test_the_environment_an_actor_and_the_turns_end_an_episode() -> None:
    actions = {"a#0": ("go",) * 9, "c#0": ("go",), "d#0": ()}
    pool = Pool(3)
    starts = [Start(name, name[0], 0) for name in actions]
    a, c, d = run(pool, starts, ListActor(actions)).played
    assert [(len(one.turns), one.episode.truncated, one.episode.episode_return) for one in (a, c, d)] == [
        (3, False, 1.0), (1, True, 0.0), (0, True, 0.0),
    ]  # fmt: skip
    assert pool.steps == [{0: "go", 1: "go"}, {0: "go"}, {0: "go"}]
    assert (a.state.observation, c.state.observation) == ("at 3", "at 1")
    for most, truncated in ((2, True), (3, False)):
        (cut,) = run(Pool(3), starts[:1], ListActor(actions), max_turns=most).played
        assert (len(cut.turns), cut.episode.truncated) == (most, truncated)


def test_nothing_is_asked_where_nothing_is_left_to_do() -> None:
    pool, player = Pool(), Player()
    assert run(pool, [], player).episodes == []
    assert player.seen == []
    (only,) = run(pool, [Start("b#0", "b", 0)], player).played
    assert only.turns == ()
    assert pool.steps == []  # its actor ended it


@pytest.mark.parametrize(("actor", "asked", "plans"), [(Player, [], ()), (Follower, [[0]], ("go",) * 5)])
def test_the_solution_is_asked_for_where_the_actor_needs_it(actor: Any, asked: Any, plans: Any) -> None:
    pool, player = Pool(1), actor()
    run(pool, [Start("a#0", "a", 0)], player)
    assert pool.plans_of == asked
    assert player.plans == [plans]


def test_a_solution_that_fails_loses_its_episode_alone(caplog: pytest.LogCaptureFixture) -> None:
    failure = Failure("raised", "no plan\nmore")
    pool = Pool(1, plan={0: failure, 1: ("go",)})
    player = Follower()
    lost, played = run(pool, [Start("a#0", "a", 3), Start("c#0", "c", 4)], player).episodes
    assert lost == failure
    assert isinstance(played, Played)
    assert [played.episode.episode_id, *(turn.act for turn in played.turns)] == ["c#0", Act("go", "hm")]
    assert pool.resets == [[(0, 3, "a"), (1, 4, "c")], [(0, 3, "a")]]
    assert player.seen == [["c#0"]]
    assert messages(caplog, "failed") == [
        "episode a#0 failed and is tried again",
        "episode a#0 failed and is dropped",
    ]


def test_seconds_are_those_of_the_actor_and_of_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def passing(seconds: float, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return call(*arguments)

        return timed

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    pool, player = Pool(2, broken={0: 1}), Follower()
    pool.reset_many = passing(1.0, pool.reset_many)  # type: ignore[method-assign]
    pool.walkthrough_many = passing(10.0, pool.walkthrough_many)  # type: ignore[method-assign]
    pool.step_many = passing(100.0, pool.step_many)  # type: ignore[method-assign]
    player.act = passing(1000.0, player.act)  # type: ignore[method-assign]
    outcome = run(pool, [Start("a#0", "a", 0), Start("c#0", "c", 0)], player)
    # Two attempts, of two turns each: "c" is solved in the first, and "a" in the second.
    assert outcome.seconds == {"act": 4000.0, "env": 2 * 1.0 + 2 * 10.0 + 4 * 100.0}


class RaisesOnce:
    """Has the environment of "a" raise in its second turn, the first time."""

    needs_walkthrough = False

    def __init__(self) -> None:
        self.raised = False

    def act(self, states: Sequence[EpisodeState]) -> list[Act | None]:
        acts: list[Act | None] = []
        for state in states:
            breaks = state.episode_id == "a#0" and len(state.turns) == 1 and not self.raised
            self.raised |= breaks
            acts.append(Act("raise" if breaks else "win" if state.turns else "look"))
        return acts


@pytest.mark.heavy
def test_an_episode_is_tried_again_in_a_fresh_environment() -> None:
    with EnvironmentPool(EnvironmentSpec("support.environments:ScriptedEnv"), num_workers=1) as pool:
        earlier = run(pool, [Start("b#0", "b", 2), Start("c#0", "c", 2)], RaisesOnce()).played
        outcome = run(pool, [Start("a#0", "a", 1), Start("c#0", "c", 2)], RaisesOnce())
        number = pool.num_replaced
    again, beside = outcome.played
    infos = [one.state.first.info for one in (*earlier, again, beside)]
    # The environments of the first two episodes were used again, except that of the slot that raised: it begins its first.
    assert [info["episodes"] for info in infos] == [1, 1, 1, 2]
    assert infos[2]["pid"] != infos[3]["pid"] == infos[0]["pid"]
    assert number == 1
    assert [turn.action for turn in again.episode.turns] == ["look", "win"]
    assert again.episode.turns[0].observation == "hello a"


@pytest.mark.heavy
def test_an_environment_that_raises_every_time_is_lost_with_its_last_reason(tmp_path: Path) -> None:
    spec = EnvironmentSpec("support.environments:RoomsEnv", {"folder": str(tmp_path)})
    actions = dict.fromkeys(("broken", "once", "a"), ("go on",) * 3)
    with EnvironmentPool(spec, num_workers=2) as pool:
        lost, again, whole = run(
            pool, [Start(name, name, 0) for name in actions], ListActor(actions)
        ).episodes
    assert isinstance(lost, Failure)
    assert lost.line == "slot 0: RuntimeError: broken is broken"
    for one in (again, whole):
        assert isinstance(one, Played)
        assert (len(one.turns), one.episode.truncated, one.episode.episode_return) == (3, False, 1.0)
