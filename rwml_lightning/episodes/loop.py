"""The environment loop: every episode is begun, stepped, tried again and finished here, whoever acts in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Completion, Episode, Transition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """An episode to play.

    Args:
        episode_id: Name of the episode; an actor's randomness derives from it.
        game: Task id; empty for an environment without tasks, where the seed is the game.
        seed: Seed of the reset.
        split: Split of its transitions.
    """

    episode_id: str
    game: str
    seed: int
    split: Literal["train", "validation"] = "train"


@dataclass(frozen=True)
class Act:
    """What an actor does in one turn; a model's act also has the tokens that it read and wrote.

    Args:
        action: Action text, as the environment gets it.
        thinking: Text before the action.
        prompt_ids: Tokens that the model read.
        completion: Tokens that the model sampled.
    """

    action: str
    thinking: str = ""
    prompt_ids: tuple[int, ...] = ()
    completion: Completion | None = None


class Actor(Protocol):
    """Chooses actions for all live episodes at once."""

    needs_walkthrough: bool
    """Whether the states that it gets hold the solution that the environment stores."""

    def act(self, states: Sequence[EpisodeState]) -> Sequence[Act | None]:
        """Return one act a state; ``None`` ends the episode, which is then truncated."""
        ...


@dataclass(frozen=True)
class PlayedTurn:
    """One turn: what could be seen before it, what was done, and what came of it."""

    view: View
    act: Act
    transition: Transition


@dataclass(frozen=True)
class Played:
    """An episode that ended without a failure of its environment.

    Args:
        episode: Record of it.
        turns: One a turn of the episode.
        state: State at its end.
    """

    episode: Episode
    turns: tuple[PlayedTurn, ...]
    state: EpisodeState


@dataclass(frozen=True)
class Outcome:
    """What became of some episodes.

    Args:
        episodes: One an episode, in the order of the starts: played, or lost to its last failure.
        seconds: Wall seconds of the actor (``act``) and of the environments (``env``).
    """

    episodes: list[Played | Failure]
    seconds: Mapping[str, float]

    @property
    def played(self) -> list[Played]:
        """Episodes that were not lost."""
        return [one for one in self.episodes if isinstance(one, Played)]


def play(
    pool: EnvironmentPool,
    starts: Sequence[Start],
    actor: Actor,
    max_turns: int,
    history_turns: int = 8,
    attempts: int = 2,
) -> Outcome:
    """Play some episodes at once; one that its environment fails is played again from its start, in a fresh environment.

    An episode ends when the environment says so, when its actor does, or after ``max_turns`` turns.

    Args:
        pool: Environments.
        starts: Episodes to play.
        actor: Chooses the actions.
        max_turns: Most turns of an episode.
        history_turns: Most earlier turns of a transition.
        attempts: How often an episode is played until it is lost.
    """
    seconds = {"act": 0.0, "env": 0.0}
    outcomes: dict[int, Played | Failure] = {}
    waiting = dict(enumerate(starts))
    for attempt in range(1, attempts + 1):
        outcomes |= _play_once(pool, waiting, actor, max_turns, history_turns, seconds)
        waiting = {slot: start for slot, start in waiting.items() if isinstance(outcomes[slot], Failure)}
        if not waiting:
            break
        fate = "is tried again" if attempt < attempts else "is dropped"
        for start in waiting.values():
            log.warning("episode %s failed and %s", start.episode_id, fate)
    return Outcome([outcomes[slot] for slot in range(len(starts))], seconds)


def _play_once(
    pool: EnvironmentPool,
    starts: Mapping[int, Start],
    actor: Actor,
    max_turns: int,
    history_turns: int,
    seconds: dict[str, float],
) -> dict[int, Played | Failure]:
    """What became of each episode, by slot."""
    live: dict[int, EpisodeState] = {}
    turns: dict[int, list[PlayedTurn]] = {slot: [] for slot in starts}
    outcomes: dict[int, Played | Failure] = {}

    def drop(slot: int, failure: Failure) -> None:
        log.warning("episode %s: %s", starts[slot].episode_id, failure.error)
        live.pop(slot, None)
        outcomes[slot] = failure

    def finish(slot: int) -> None:
        state, start = live.pop(slot), starts[slot]
        episode = state.finish(pool.spec.id, start.game, start.seed)
        outcomes[slot] = Played(episode, tuple(turns[slot]), state)

    with _timed(seconds, "env"):
        answers = pool.reset_many((slot, start.seed, start.game or None) for slot, start in starts.items())
        begun = [slot for slot, answer in answers.items() if not isinstance(answer, Failure)]
        walkthroughs = pool.walkthrough_many(begun) if actor.needs_walkthrough else {}
    for slot, answer in answers.items():
        walkthrough = walkthroughs.get(slot, ())
        if isinstance(answer, Failure):
            drop(slot, answer)
        elif isinstance(walkthrough, Failure):
            drop(slot, walkthrough)
        else:
            live[slot] = EpisodeState.begin(starts[slot].episode_id, answer, walkthrough)
    for _ in range(max_turns):
        with _timed(seconds, "act"):
            chosen = dict(zip(live, actor.act(list(live.values())), strict=True)) if live else {}
        for slot in [slot for slot, act in chosen.items() if act is None]:
            finish(slot)
        acts = {slot: act for slot, act in chosen.items() if act is not None}
        if not acts:
            break
        with _timed(seconds, "env"):
            answers = pool.step_many({slot: act.action for slot, act in acts.items()})
        for slot, answer in answers.items():
            if isinstance(answer, Failure):
                drop(slot, answer)
                continue
            state, act = live[slot], acts[slot]
            view = state.view
            transition = state.advance(
                act.action, answer, pool.spec.id, act.thinking, history_turns, starts[slot].split
            )
            turns[slot].append(PlayedTurn(view, act, transition))
            if answer.done:
                finish(slot)
    for slot in list(live):
        finish(slot)
    return outcomes


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - start
