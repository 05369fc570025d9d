"""Frozen records that the run store returns, one class for each kind of row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rwml_lightning.schema import Transition

Status = Literal["running", "paused", "finished", "stopped", "failed"]
CommandName = Literal["checkpoint", "pause", "continue", "stop"]
TRANSITION_COLUMNS = ("transition_id", "environment", "game", "kind", "split", "valid", "knowable", "action")
"""Fields of a transition that the run store holds as they are; its texts are stored once, in another table."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """State of the run. Times are seconds since the epoch. ``heartbeat`` is the time of the trainer's last write."""

    created: float
    heartbeat: float
    status: Status
    detail: str

    @property
    def alive(self) -> bool:
        """Whether the trainer has not recorded its end. A killed trainer stays alive here, with an old heartbeat."""
        return self.status in ("running", "paused")


@dataclass(frozen=True, slots=True)
class StageInfo:
    """A stage of training. ``resumed`` is the time of the last restart. ``last_step`` is ``None`` before the first step."""

    stage: str
    total_steps: int
    config: str
    started: float
    resumed: float | None
    last_step: int | None
    last_time: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step and the time of its recording (seconds since the epoch)."""

    stage: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One row of the list of groups.

    Means are over the members of the group. Similarities are over the members with a similarity, and ``None`` if no
    member has one. ``source`` is ``train`` or the name of the evaluation that made the group.
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
    """One group with its full texts, but without its predictions."""

    summary: GroupSummary
    transition: Transition
    prompt: str


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One member of a group: a completion and its scores. ``tokens`` is the completion's number of tokens."""

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
    """One row of the list of episodes. ``id`` is the row id in the store."""

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
    """Held-out results at a step. ``result`` holds the trainer's values, for example metrics by kind of action."""

    stage: str
    step: int
    name: str
    time: float
    result: Any


@dataclass(frozen=True, slots=True)
class Command:
    """A command from a reader to the trainer. ``acknowledged`` is the time of its answer, ``None`` until then."""

    id: int
    time: float
    command: CommandName
    acknowledged: float | None
    answer: str | None
