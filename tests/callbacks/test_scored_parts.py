"""Scoring beside generation: nothing waits that need not, nothing that failed is passed over, nothing finished is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rwml_callbacks.easy_samples.parts import Answers, ScoredParts, Throughput, read_parts, write_part

from support.worlds import make_transition

TRAINER: Any = SimpleNamespace(is_global_zero=True)
MODULE: Any = None


def make_answers(number: int) -> Answers:
    return Answers([make_transition(number)], [["a", None]], num_tokens=10, generate_seconds=0.0)


def make_parts(folder: Path, score: Any, beats: list[int]) -> ScoredParts:
    parts = ScoredParts(folder, score, total=2, heartbeat=lambda: beats.append(len(beats)))
    parts.on_predict_start(TRAINER, MODULE)
    return parts


def test_the_next_batch_is_not_kept_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, beats = threading.Event(), list[int]()

    def score(answers: Answers) -> dict[str, float]:
        assert scored.wait(20)
        return {answers.transitions[0].transition_id: 0.5}

    parts = make_parts(tmp_path, score, beats)
    parts.on_predict_batch_end(
        TRAINER, MODULE, None, make_answers(0), 0
    )  # comes back though nothing is scored
    assert read_parts(tmp_path) == ({}, Throughput())
    scored.set()
    parts.on_predict_batch_end(TRAINER, MODULE, None, make_answers(1), 1)
    parts.on_predict_end(TRAINER, MODULE)
    rewards, throughput = read_parts(tmp_path)
    assert rewards == {"t0": 0.5, "t1": 0.5}
    assert throughput.num_tokens == 20
    assert throughput.seconds > 0
    assert beats == [0, 1]
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "easy-sample filter 1/2",
        "easy-sample filter 2/2",
    ]


def test_a_failure_of_the_reward_stops_the_filter(tmp_path: Path) -> None:
    def score(answers: Answers) -> dict[str, float]:
        raise OSError("the embedding server is down")

    parts = make_parts(tmp_path, score, [])
    parts.on_predict_batch_end(TRAINER, MODULE, None, make_answers(0), 0)
    with pytest.raises(OSError, match="the embedding server is down"):
        parts.on_predict_batch_end(TRAINER, MODULE, None, make_answers(1), 1)
    parts.on_exception(TRAINER, MODULE, OSError())


def test_parts_add_up(tmp_path: Path) -> None:
    write_part(tmp_path, {"a": 1.0, "b": 0.0}, Throughput(100, 2.0, 1.0))
    write_part(tmp_path, {"c": 0.5}, Throughput(50, 1.0, 0.5))
    (tmp_path / ".half").write_text("{")  # of a process that was killed
    rewards, throughput = read_parts(tmp_path)
    assert rewards == {"a": 1.0, "b": 0.0, "c": 0.5}
    assert (throughput.tokens_per_s, throughput.generator_share) == (50.0, 0.5)
    assert Throughput().tokens_per_s == 0.0
