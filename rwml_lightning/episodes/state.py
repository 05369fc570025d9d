"""An episode in progress, and the transitions that come of it."""

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
    """An episode in progress, as its player sees it.

    Args:
        episode_id: Game and number of the episode; the player's randomness derives from it.
        first: What the environment answered to the reset; its ``info`` names what holds for the whole episode.
        last: What it answered last.
        walkthrough: Expert actions, if the collection may use them.
        turns: What happened so far.
        known_actions: Every action that was admissible at some time.
    """

    episode_id: str
    first: Observation
    last: Observation
    walkthrough: Sequence[str] = ()
    turns: list[Turn] = field(default_factory=list)
    known_actions: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, episode_id: str, first: Observation, walkthrough: Sequence[str] = ()) -> EpisodeState:
        """The state after a reset."""
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
        """Actions that the environment names; empty where it names none."""
        return tuple(self.last.info.get("admissible_actions", ()))

    @property
    def view(self) -> View:
        """What a policy can see of it."""
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
        """Go on to what the environment answered.

        Of the answer's ``info``, ``kind``, ``valid`` and ``knowable`` are those of the transition; ``action`` and ``next_state``
        take the place of what was done and what was answered, where the environment has a normal form of them. ``background`` in
        the reset's takes the place of the task for whoever predicts.

        Args:
            action: What was done.
            answer: What came of it.
            environment: Name of the environment.
            thinking: What the player wrote before its action.
            history_turns: Most earlier turns of the transition.
            split: Split of the transition.

        Returns:
            The step as a sample; its ``transition_id`` is ``<episode_id>/<turn>``.
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
        """The whole episode, which ends where it is now."""
        info = self.last.info
        won = info.get("won")
        return Episode(
            self.episode_id, environment, game, self.task, seed, tuple(self.turns), self.observation,
            success=None if won is None else bool(won), truncated=not self.last.terminated,
            kind=str(info.get("task_type", "")), measures=dict(info.get("measures", {})),
        )  # fmt: skip
