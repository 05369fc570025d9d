"""Gymnasium's Taxi as a text environment: how to wrap an environment without texts, with no change to the trainer.

Configs refer to it as ``examples.taxi:TaxiInWords`` (see examples/taxi.yaml).
"""

from __future__ import annotations

from typing import Any

import gymnasium

ACTIONS = ("go south", "go north", "go east", "go west", "pick up the passenger", "drop off the passenger")
STANDS = ("red", "green", "yellow", "blue")


class TaxiInWords(gymnasium.Env[str, str]):
    """Describe the states of Gymnasium's ``Taxi-v4`` in sentences, and name its actions. Episodes differ by seed, not by task."""

    observation_space = gymnasium.spaces.Text(200)
    action_space = gymnasium.spaces.Text(40)

    def __init__(self, max_steps: int = 30) -> None:
        self.taxi = gymnasium.make("Taxi-v4", max_episode_steps=max_steps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        state, info = self.taxi.reset(seed=seed)
        # Offer pick up and drop off only where they have an effect, so that random play gets further.
        self.mask = info["action_mask"]
        return self.describe(state), {"task": "Bring the passenger to their destination.", **self.offered()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action not in ACTIONS:
            return "No such action.", 0.0, False, False, {"valid": False, "kind": "unknown", **self.offered()}
        number = ACTIONS.index(action)
        valid = bool(self.mask[number])
        state, reward, terminated, truncated, info = self.taxi.step(number)
        self.mask = info["action_mask"]
        kind = "move" if number < 4 else "passenger"
        return self.describe(state), float(reward), terminated, truncated, {
            "valid": valid, "kind": kind if valid else "nothing", "won": terminated, **self.offered(),
        }  # fmt: skip

    def offered(self) -> dict[str, Any]:
        return {"admissible_actions": [name for name, free in zip(ACTIONS, self.mask, strict=True) if free]}

    def describe(self, state: int) -> str:
        row, column, passenger, goal = self.taxi.unwrapped.decode(state)  # type: ignore[attr-defined]
        rides = passenger == len(STANDS)
        where = "rides in the taxi" if rides else f"waits at the {STANDS[passenger]} stand"
        return f"The taxi is in row {row}, column {column}. The passenger {where} and wants to go to the {STANDS[goal]} stand."
