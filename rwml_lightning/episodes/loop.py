"""The environment loop: it starts, steps, retries and finishes the episodes of every actor."""

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
        episode_id: Id of the episode, from which the seeds of an actor derive.
        game: Task id; empty for an environment without tasks, in which each seed is a game.
        seed: Seed of the reset.
        split: Split of the episode's transitions.
    """

    episode_id: str
    game: str
    seed: int
    split: Literal["train", "validation"] = "train"


@dataclass(frozen=True)
class Act:
    """The action of an actor in one turn. For a model, it includes the tokens of the prompt and the completion.

    Args:
        action: Action text, as it is passed to the environment.
        thinking: Text before the action.
        prompt_ids: Token ids of the model's prompt.
        completion: Completion that the model sampled.
    """

    action: str
    thinking: str = ""
    prompt_ids: tuple[int, ...] = ()
    completion: Completion | None = None


class Actor(Protocol):
    """Chooses actions for all live episodes at once."""

    needs_walkthrough: bool
    """Whether the actor needs the environment's stored walkthrough in its states."""

    def act(self, states: Sequence[EpisodeState]) -> Sequence[Act | None]:
        """Return one act per state. ``None`` ends the episode, which then counts as truncated."""
        ...


@dataclass(frozen=True)
class PlayedTurn:
    """One turn of an episode: the view before it, the act, and the transition."""

    view: View
    act: Act
    transition: Transition


@dataclass(frozen=True)
class Played:
    """An episode that ended without a failure of its environment.

    Args:
        episode: Record of the episode.
        turns: Turns of the episode, in order.
        state: State at the end of the episode.
    """

    episode: Episode
    turns: tuple[PlayedTurn, ...]
    state: EpisodeState


@dataclass(frozen=True)
class Outcome:
    """Result of playing a batch of episodes.

    Args:
        episodes: Played episodes, or the last failure of lost episodes, in the order of the starts.
        seconds: Wall-clock seconds of the actor (``act``) and of the environments (``env``).
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
    """Play a batch of episodes at once. After a failure of its environment, an episode restarts in a fresh environment.

    An episode ends when the environment or the actor ends it, or after ``max_turns`` turns.

    Args:
        pool: Environments.
        starts: Episodes to play.
        actor: Actor that chooses the actions.
        max_turns: Maximum number of turns of an episode.
        history_turns: Maximum number of earlier turns in a transition.
        attempts: Number of failed attempts after which an episode is lost.
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
    """Play each episode once, and return the played episode or its failure by slot."""
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
