"""Episodes of the expert, and at each of their steps what other actions would have done."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard, TypeVar

from rwml_lightning.data.episodes import EpisodeState, View
from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.schema import Episode, Transition
from rwml_lightning.seeds import derive_seed

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)
_MOST_BRANCHES = 32
"""Branches under way at once; each has an environment of its own."""


@dataclass(frozen=True)
class ExpertGame:
    """A game that the expert plays.

    Args:
        episode_id: Of the expert's episode.
        task: Task id; empty for an environment without tasks.
        seed: Of the reset.
        split: Of its transitions.
    """

    episode_id: str
    task: str
    seed: int
    split: Literal["train", "validation"] = "train"


@dataclass(frozen=True)
class ExpertStep:
    """What the expert did, what it saw before, and what some other actions would have done in its place."""

    transition: Transition
    view: View
    alternatives: tuple[Transition, ...] = ()


@dataclass(frozen=True)
class ExpertEpisode:
    """An episode that its walkthrough solves."""

    episode: Episode
    steps: tuple[ExpertStep, ...]


@dataclass(frozen=True)
class _Branch:
    game: int
    turn: int
    number: int
    action: str


def follow_expert(
    pool: EnvironmentPool,
    environment: str,
    games: Sequence[ExpertGame],
    max_steps: int,
    seed: int,
    num_alternatives: int = 0,
    history_turns: int = 8,
) -> tuple[list[ExpertEpisode], dict[str, str]]:
    """Play games by the walkthrough that the environment gives.

    An alternative is played out from the game's start, in an environment of its own: the expert's actions up to its turn, then
    the other action. Which ones are a random draw of the admissible actions that the expert did not take.

    Args:
        pool: Environments.
        environment: Its name, for records.
        games: What to play.
        max_steps: Turns after which an episode is cut off.
        seed: The run's seed, of the draw.
        num_alternatives: At each step, as far as there are so many.
        history_turns: Most earlier turns of a transition.

    Returns:
        Episodes in the order of the games, without those that were not solved; and why they were not, by name.
    """
    failures: dict[str, str] = {}
    played = _follow(pool, environment, games, max_steps, history_turns, failures)
    if num_alternatives:
        branches = [
            _Branch(number, turn, place, action)
            for number, found in played.items()
            for turn, step in enumerate(found.steps)
            for place, action in enumerate(_other_actions(step, num_alternatives, seed))
        ]
        done: dict[_Branch, Transition] = {}
        for start in range(0, len(branches), _MOST_BRANCHES):
            part = branches[start : start + _MOST_BRANCHES]
            done |= _branch_out(pool, environment, games, played, part, history_turns)
        played = {number: _with_branches(found, number, done) for number, found in played.items()}
    missing = [game.episode_id for number, game in enumerate(games) if number not in played]
    unsolved = {name: failures.get(name, "its walkthrough does not solve it") for name in missing}
    return [played[number] for number in sorted(played)], unsolved


def _follow(
    pool: EnvironmentPool,
    environment: str,
    games: Sequence[ExpertGame],
    max_steps: int,
    history_turns: int,
    failures: dict[str, str],
) -> dict[int, ExpertEpisode]:
    """Solved episodes by place; ``failures`` gets the others whose environment failed."""
    begun = pool.reset_many((slot, game.seed, game.task or None) for slot, game in enumerate(games))
    live = {
        slot: EpisodeState.begin(games[slot].episode_id, first)
        for slot, first in begun.items()
        if _came(first, games[slot].episode_id, failures)
    }
    plans = {
        slot: list(plan)[:max_steps]
        for slot, plan in pool.walkthrough_many(list(live)).items()
        if _came(plan, games[slot].episode_id, failures)
    }
    steps: dict[int, list[ExpertStep]] = {slot: [] for slot in plans}
    played: dict[int, ExpertEpisode] = {}
    for turn in range(max_steps):
        acting = {slot: plan[turn] for slot, plan in plans.items() if turn < len(plan)}
        if not acting:
            break
        for slot, answer in pool.step_many(acting).items():
            if not _came(answer, games[slot].episode_id, failures):
                del plans[slot]
                continue
            view = live[slot].view
            transition = live[slot].advance(
                acting[slot], answer, environment, history_turns=history_turns, split=games[slot].split
            )
            steps[slot].append(ExpertStep(transition, view))
            if answer.info.get("won", answer.reward > 0):
                game = games[slot]
                episode = live[slot].finish(environment, game.task, game.seed)
                played[slot] = ExpertEpisode(episode, tuple(steps[slot]))
            if answer.done:
                del plans[slot]
    return played


def _other_actions(step: ExpertStep, count: int, seed: int) -> list[str]:
    others = sorted(set(step.view.admissible) - {step.transition.action})
    rng = random.Random(derive_seed(seed, "alternatives", step.transition.transition_id))
    return rng.sample(others, min(count, len(others)))


def _branch_out(
    pool: EnvironmentPool,
    environment: str,
    games: Sequence[ExpertGame],
    experts: Mapping[int, ExpertEpisode],
    branches: Sequence[_Branch],
    history_turns: int,
) -> dict[_Branch, Transition]:
    """What each branch's action did, of those that came to it without a failure."""

    def name(branch: _Branch) -> str:
        return f"{games[branch.game].episode_id}~{branch.turn}.{branch.number}"

    slots = dict(enumerate(branches))
    begun = pool.reset_many(
        (slot, games[one.game].seed, games[one.game].task or None) for slot, one in slots.items()
    )
    live = {
        slot: EpisodeState.begin(name(slots[slot]), first)
        for slot, first in begun.items()
        if _came(first, name(slots[slot]))
    }
    found: dict[_Branch, Transition] = {}
    for turn in range(max((branch.turn for branch in branches), default=-1) + 1):
        acting = {
            slot: branch.action if branch.turn == turn else experts[branch.game].steps[turn].transition.action
            for slot, branch in slots.items()
            if slot in live and turn <= branch.turn
        }
        for slot, answer in pool.step_many(acting).items():
            branch = slots[slot]
            if not _came(answer, name(branch)):
                del live[slot]
                continue
            split = games[branch.game].split
            transition = live[slot].advance(
                acting[slot], answer, environment, history_turns=history_turns, split=split
            )
            if branch.turn == turn:
                found[branch] = transition
            if answer.done:
                del live[slot]
    return found


def _with_branches(expert: ExpertEpisode, game: int, done: Mapping[_Branch, Transition]) -> ExpertEpisode:
    own: dict[int, list[Transition]] = {}
    for branch, transition in done.items():
        if branch.game == game:
            own.setdefault(branch.turn, []).append(transition)
    steps = (replace(step, alternatives=tuple(own.get(turn, ()))) for turn, step in enumerate(expert.steps))
    return replace(expert, steps=tuple(steps))


def _came(answer: Answer | Failure, name: str, failures: dict[str, str] | None = None) -> TypeGuard[Answer]:
    """Whether it is an answer; a failure is logged, and noted in ``failures``."""
    if isinstance(answer, Failure):
        log.warning("episode %s: %s", name, answer.error)
        if failures is not None:
            failures[name] = answer.line
    return not isinstance(answer, Failure)


def transitions_of(expert: ExpertEpisode) -> Iterator[Transition]:
    """The expert's steps and their alternatives."""
    for step in expert.steps:
        yield step.transition
        yield from step.alternatives
