"""State of an episode in progress, which produces its transitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rwml_lightning.envs import Observation
from rwml_lightning.episodes.games import task_of
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Episode, Transition, Turn


@dataclass
class EpisodeState:
    """State of an episode in progress, as its actor sees it.

    Args:
        episode_id: Game and number of the episode, from which the seeds of the actor derive.
        first: Observation after the reset. Its ``info`` applies to the whole episode.
        last: Latest observation.
        walkthrough: Expert actions, if the actor needs them.
        turns: Turns so far.
        known_actions: All actions that were admissible at any time in the episode.
    """

    episode_id: str
    first: Observation
    last: Observation
    walkthrough: Sequence[str] = ()
    turns: list[Turn] = field(default_factory=list)
    known_actions: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, episode_id: str, first: Observation, walkthrough: Sequence[str] = ()) -> EpisodeState:
        """Return the state after a reset."""
        state = cls(episode_id, first, first, walkthrough)
        state.known_actions.update(state.admissible)
        return state

    @property
    def task(self) -> str:
        """Task text."""
        return str(self.first.info.get("task", ""))

    @property
    def observation(self) -> str:
        """Current state text."""
        return self.last.text

    @property
    def admissible(self) -> tuple[str, ...]:
        """Admissible actions that the environment lists; empty if it lists none."""
        return tuple(self.last.info.get("admissible_actions", ()))

    @property
    def view(self) -> View:
        """View of the state for a policy."""
        info = self.first.info
        return View(
            self.task, tuple(self.turns), self.observation, self.admissible, self.last.messages,
            str(info.get("instructions", "")), tuple(info.get("tools", ())),
        )  # fmt: skip

    def advance(
        self,
        action: str,
        answer: Observation,
        environment: str,
        thinking: str = "",
        history_turns: int = 8,
        split: Literal["train", "validation"] = "train",
    ) -> Transition:
        """Advance the state by one turn.

        The ``info`` of ``answer`` sets ``kind``, ``valid`` and ``knowable`` of the transition. If the environment has a normal
        form of the action or the next state, ``info`` holds it as ``action`` or ``next_state``, which replaces the text.
        ``background`` in the ``info`` of the reset replaces the task in prompts for predictions.

        Args:
            action: Action that was played.
            answer: Observation that the environment returned.
            environment: Name of the environment.
            thinking: Text that the actor wrote before its action.
            history_turns: Maximum number of earlier turns in the transition.
            split: Split of the transition.

        Returns:
            Transition of the turn. Its ``transition_id`` is ``<episode_id>/<turn>``.
        """
        info = answer.info
        action = str(info.get("action", action))
        transition = Transition(
            transition_id=f"{self.episode_id}/{len(self.turns)}",
            environment=environment,
            game=task_of(self.episode_id) or self.episode_id,
            task=str(self.first.info.get("background", self.task)),
            history=tuple(self.turns[-history_turns:] if history_turns else ()),
            observation=self.observation,
            action=action,
            next_state=str(info.get("next_state", answer.text)),
            kind=str(info.get("kind", "other")),
            valid=bool(info.get("valid", not self.admissible or action in self.admissible)),
            knowable=bool(info.get("knowable", True)),
            split=split,
        )
        self.turns.append(Turn(self.observation, action, transition.valid, answer.reward, thinking))
        self.last = answer
        self.known_actions.update(self.admissible)
        return transition

    def finish(self, environment: str, game: str, seed: int) -> Episode:
        """Return the record of the episode, which ends at the current state."""
        info = self.last.info
        won = info.get("won")
        return Episode(
            self.episode_id, environment, game, self.task, seed, tuple(self.turns), self.observation,
            success=None if won is None else bool(won), truncated=not self.last.terminated,
            kind=str(info.get("task_type", "")), measures=dict(info.get("measures", {})),
        )  # fmt: skip
