"""Small real groups and a writer on a fresh store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import TraceReader, TraceWriter


def _make_group(
    name: str = "t0",
    rewards: tuple[float, ...] = (1.0, 0.0),
    action: str = "go to shelf 1",
    real: str = "On the shelf 1, you see a mug 1.",
    predicted: str | None = "On the shelf 1, you see a vase 2.",
    kind: str = "navigation",
    step: int = 0,
) -> Group:
    transition = Transition(
        transition_id=name,
        environment="alfworld",
        game="game-1",
        task="put a mug on the desk",
        history=(Turn("You are in a room.", "look", thinking="hm", valid=False, reward=0.5),),
        observation="You are facing the desk 1.",
        action=action,
        next_state=real,
        kind=kind,
        knowable=False,
        split="validation",
    )
    predictions = tuple(
        Prediction(
            completion=Completion((5, 6, 7), (-0.1, -0.2, -0.3), "stop", policy_version=step),
            text=f"<think>m{member}</think><next_state>{predicted}</next_state>",
            thinking=f"m{member}",
            next_state=predicted,
            score=Score(reward, 0.25 + reward / 2, True, {"similarity": 0.5}),
            advantage=reward - 0.5,
            member=member,
        )
        for member, reward in enumerate(rewards)
    )
    return Group(transition, (1, 2, 3, 4), f"prompt of {name}", predictions)


@pytest.fixture
def make_group() -> Callable[..., Group]:
    return _make_group


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run one" / "trace.db"


@pytest.fixture
def writer(path: Path) -> Iterator[TraceWriter]:
    with TraceWriter(path) as open_writer:
        open_writer.start_stage("wm_grpo", 10, "seed: 1")
        yield open_writer


@pytest.fixture
def reader(writer: TraceWriter, path: Path) -> Iterator[TraceReader]:
    with TraceReader(path) as open_reader:
        yield open_reader
