"""Expert episodes, with the results of alternative actions at each of their steps."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.episodes.actors import ExpertActor, ListActor
from rwml_lightning.episodes.loop import Played, Start, play
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Episode, Transition
from rwml_lightning.seeds import derive_seed

_MAX_BRANCHES = 32
"""Number of branches played at once. Each branch has its own environment."""


@dataclass(frozen=True)
class ExpertStep:
    """One step of an expert episode: its transition, the view before it, and the transitions of some alternative actions."""

    transition: Transition
    view: View
    alternatives: tuple[Transition, ...] = ()


@dataclass(frozen=True)
class ExpertEpisode:
    """An episode that was solved by its walkthrough."""

    episode: Episode
    steps: tuple[ExpertStep, ...]

    @property
    def transitions(self) -> Iterator[Transition]:
        """Transitions of the expert's steps and of their alternatives."""
        for step in self.steps:
            yield step.transition
            yield from step.alternatives


@dataclass(frozen=True)
class _Branch:
    """An episode that follows the expert up to a turn and then plays another action."""

    start: Start
    turn: int
    actions: tuple[str, ...]


def follow_expert(
    pool: EnvironmentPool,
    starts: Sequence[Start],
    max_turns: int,
    seed: int,
    num_alternatives: int = 0,
    history_turns: int = 8,
) -> tuple[list[ExpertEpisode], dict[str, str]]:
    """Play episodes with the walkthroughs of the environment.

    Each alternative action is played in its own environment, from the start of the episode: first the expert's actions up to
    its turn, then the alternative. The alternatives are a random draw from the admissible actions that the expert did not take.

    Args:
        pool: Environments.
        starts: Episodes to play.
        max_turns: Number of turns after which an episode is cut off.
        seed: Seed of the run, from which the draw derives.
        num_alternatives: Maximum number of alternative actions at each step.
        history_turns: Maximum number of earlier turns in a transition.

    Returns:
        Solved episodes in the order of the starts, and the reason for each unsolved episode, by its name.
    """
    solved: list[tuple[Start, ExpertEpisode]] = []
    unsolved: dict[str, str] = {}
    outcome = play(pool, starts, ExpertActor(), max_turns, history_turns)
    for start, found in zip(starts, outcome.episodes, strict=True):
        if isinstance(found, Failure):
            unsolved[start.episode_id] = found.line
        elif not found.episode.solved:
            unsolved[start.episode_id] = "its walkthrough does not solve it"
        else:
            steps = tuple(ExpertStep(turn.transition, turn.view) for turn in found.turns)
            solved.append((start, ExpertEpisode(found.episode, steps)))
    branches = [
        branch for start, episode in solved for branch in _branches(start, episode, num_alternatives, seed)
    ]
    alternatives = _play_branches(pool, branches, history_turns)
    return [_with_alternatives(start, episode, alternatives) for start, episode in solved], unsolved


def _branches(start: Start, episode: ExpertEpisode, count: int, seed: int) -> Iterator[_Branch]:
    done: tuple[str, ...] = ()
    for turn, step in enumerate(episode.steps):
        action = step.transition.action
        others = sorted(set(step.view.admissible) - {action})
        rng = random.Random(derive_seed(seed, "alternatives", step.transition.transition_id))
        for number, other in enumerate(rng.sample(others, min(count, len(others)))):
            own = replace(start, episode_id=f"{start.episode_id}~{turn}.{number}")
            yield _Branch(own, turn, (*done, other))
        done += (action,)


def _play_branches(
    pool: EnvironmentPool, branches: Sequence[_Branch], history_turns: int
) -> dict[tuple[str, int], list[Transition]]:
    """Return the last transition of each branch, by (id of the expert's episode, turn), without branches that ended earlier."""
    found: dict[tuple[str, int], list[Transition]] = defaultdict(list)
    for first in range(0, len(branches), _MAX_BRANCHES):
        part = branches[first : first + _MAX_BRANCHES]
        actor = ListActor({branch.start.episode_id: branch.actions for branch in part})
        max_turns = max(len(branch.actions) for branch in part)
        outcome = play(pool, [branch.start for branch in part], actor, max_turns, history_turns)
        for branch, played in zip(part, outcome.episodes, strict=True):
            if isinstance(played, Played) and len(played.turns) == len(branch.actions):
                expert = branch.start.episode_id.rpartition("~")[0]
                found[expert, branch.turn].append(played.turns[-1].transition)
    return found


def _with_alternatives(
    start: Start, expert: ExpertEpisode, found: Mapping[tuple[str, int], Sequence[Transition]]
) -> ExpertEpisode:
    steps = (
        replace(step, alternatives=tuple(found.get((start.episode_id, turn), ())))
        for turn, step in enumerate(expert.steps)
    )
    return replace(expert, steps=tuple(steps))
