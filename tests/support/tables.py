"""Inputs of the W&B tables, and a record of their outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeGroup,
    Playthrough,
    Turn,
)


def make_group(game: str, num_turns: int = 2) -> EpisodeGroup:
    turns = tuple(Turn(f"room {n}", "go on", n > 0, 0.0, "x" * 600) for n in range(num_turns))
    samples = tuple(
        ActionSample((1,), Completion((2,), (-1.0,), "stop", 0), 0.5 * n, 0.25) for n in range(num_turns)
    )
    episode = Episode("e", "rooms", game, "cross", 0, turns, "end", success=game == "a", kind="walk")
    return EpisodeGroup(game, "train", (Playthrough(episode, samples),) * 3)


class Log:
    """Replace the W&B logger, and record the rows and steps that a table logs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, resumed: bool) -> None:
        self.steps: list[int] = []
        self.rows: list[list[Any]] = []
        logger = SimpleNamespace(experiment=SimpleNamespace(resumed=resumed), log_metrics=self.log_metrics)
        for user in ("prediction_table", "wandb_table"):
            monkeypatch.setattr(f"rwml_callbacks.{user}.wandb_logger", lambda trainer: logger)

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        if "predictions" in metrics:
            self.steps.append(step)
            self.rows = metrics["predictions"].data
