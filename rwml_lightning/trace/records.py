"""What the run store gives back: frozen records, one for each thing that a reader lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rwml_lightning.schema import Transition

Status = Literal["running", "paused", "finished", "failed"]
CommandName = Literal["checkpoint", "pause", "continue", "stop"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """State of the run. Times are seconds since the epoch; ``heartbeat`` is the writer's last sign of life."""

    created: float
    heartbeat: float
    status: Status
    detail: str

    @property
    def alive(self) -> bool:
        """Whether the trainer has not said that it ended; one that was killed is told by an old heartbeat."""
        return self.status in ("running", "paused")


@dataclass(frozen=True, slots=True)
class StageInfo:
    """A stage of training. ``resumed`` is the time of the last restart; ``last_step`` is ``None`` before the first."""

    stage: str
    total_steps: int
    config: str
    started: float
    resumed: float | None
    last_step: int | None
    last_time: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step and when it was recorded (seconds since the epoch)."""

    stage: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One row of the list of groups.

    Means are over members; similarities over those that have one, ``None`` when none has. ``source`` is ``train`` or
    the name of the evaluation that made the group.
    """

    id: int
    stage: str
    step: int
    source: str
    position: int
    transition_id: str
    environment: str
    game: str
    kind: str
    split: str
    valid: bool
    knowable: bool
    action: str
    policy_version: int | None
    rewards: tuple[float, ...]
    mean_reward: float | None
    mean_similarity: float | None
    best_similarity: float | None
    mean_tokens: float | None
    well_formed: float | None
    zero_variance: bool
    prompt_tokens: int
    task: str


@dataclass(frozen=True, slots=True)
class GroupDetail:
    """One group in full, but for its predictions."""

    summary: GroupSummary
    transition: Transition
    prompt: str


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One member of a group: what the model wrote, and what it was worth. ``tokens`` is the completion's length."""

    group_id: int
    member: int
    reward: float
    similarity: float | None
    advantage: float
    well_formed: bool
    tokens: int
    finish_reason: str
    policy_version: int
    parts: Mapping[str, float]
    next_state: str | None
    thinking: str
    text: str


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """One row of the list of episodes; ``id`` is the store's own."""

    id: int
    stage: str
    step: int
    source: str
    position: int
    episode_id: str
    environment: str
    game: str
    kind: str
    success: bool | None
    truncated: bool
    num_turns: int
    episode_return: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out results at a step: ``result`` is what the trainer gave, for example metrics by kind of action."""

    stage: str
    step: int
    name: str
    time: float
    result: Any


@dataclass(frozen=True, slots=True)
class Command:
    """What a reader asked of the trainer; ``acknowledged`` is ``None`` until it was heard."""

    id: int
    time: float
    command: CommandName
    acknowledged: float | None
    answer: str | None
