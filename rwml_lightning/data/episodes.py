"""An episode in progress, and the transitions that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rwml_lightning.envs import Observation
from rwml_lightning.schema import Episode, Transition, Turn
from rwml_lightning.seeds import derive_seed


@dataclass
class EpisodeState:
    """An episode in progress, as its player sees it.

    Args:
        episode_id: Game and number of the episode; the player's randomness derives from it.
        task: Task text.
        observation: Current state text.
        admissible: Actions that the environment names; empty where it names none.
        walkthrough: Expert actions, if the collection may use them.
        turns: What happened so far.
        known_actions: Every action that was admissible at some time.
    """

    episode_id: str
    task: str
    observation: str
    admissible: Sequence[str]
    walkthrough: Sequence[str] = ()
    turns: list[Turn] = field(default_factory=list)
    known_actions: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, episode_id: str, first: Observation, walkthrough: Sequence[str] = ()) -> EpisodeState:
        """The state after a reset."""
        admissible = first.info.get("admissible_actions", ())
        task = str(first.info.get("task", ""))
        return cls(episode_id, task, str(first.obs), admissible, walkthrough, known_actions=set(admissible))

    def advance(
        self,
        action: str,
        answer: Observation,
        environment: str,
        thinking: str = "",
        history_turns: int = 8,
        split: Literal["train", "validation"] = "train",
    ) -> Transition:
        """Go on to what the environment answered.

        Args:
            action: What was done.
            answer: What came of it.
            environment: Name of the environment.
            thinking: What the player wrote before its action.
            history_turns: Most earlier turns of the transition.
            split: Of the transition.

        Returns:
            The step as a sample; its ``transition_id`` is ``<episode_id>/<turn>``.
        """
        next_state, info = str(answer.obs), answer.info
        transition = Transition(
            transition_id=f"{self.episode_id}/{len(self.turns)}",
            environment=environment,
            game=game_of(self.episode_id) or self.episode_id,
            task=self.task,
            history=tuple(self.turns[-history_turns:] if history_turns else ()),
            observation=self.observation,
            action=action,
            next_state=next_state,
            kind=str(info.get("kind", "other")),
            valid=bool(info.get("valid", not self.admissible or action in self.admissible)),
            knowable=bool(info.get("knowable", True)),
            split=split,
        )
        self.turns.append(Turn(self.observation, action, transition.valid, answer.reward, thinking))
        self.observation = next_state
        self.admissible = info.get("admissible_actions", ())
        self.known_actions.update(self.admissible)
        return transition

    def finish(self, environment: str, game: str, seed: int, last: Observation) -> Episode:
        """The whole episode; ``last`` is the answer to its last action."""
        won = last.info.get("won")
        return Episode(
            self.episode_id, environment, game, self.task, seed, tuple(self.turns), self.observation,
            success=None if won is None else bool(won), truncated=not last.terminated,
            kind=str(last.info.get("task_type", "")),
        )  # fmt: skip


def episode_name(game: str, number: int) -> str:
    """Id of a game's episode; ``game`` is empty where the environment has no tasks and the seed is the game."""
    return f"{game}#{number}"


def game_of(episode_id: str) -> str:
    """The game in an episode's id."""
    return episode_id.rpartition("#")[0]


def episode_seed(seed: int, episode_id: str) -> int:
    """Seed of an episode's reset, from the run's."""
    return derive_seed(seed, "episode", episode_id)
