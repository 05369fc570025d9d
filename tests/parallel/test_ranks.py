"""What ranks say to one another, in one process and in two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rwml_lightning import parallel


def test_in_one_process_nothing_travels() -> None:
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert parallel.gather("a") == ["a"]
    assert parallel.broadcast("a") == "a"
    assert parallel.together(lambda: 3) == [3]
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.roll_out([1, 2], sum) == [3]
    assert parallel.roll_out([], sum) == [0]
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, 2.0])
    parallel.sum_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    with pytest.raises(ZeroDivisionError):
        parallel.together(lambda: 1 // 0)


def test_what_rank_0_agrees_on_is_inherited_by_processes_that_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RWML_FOLDER", "of an earlier run")
    assert parallel.agree("folder", lambda: "new") == "new"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.agree("folder", lambda: "another") == "new"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    out = tmp_path_factory.mktemp("ranks") / "seen"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "support.rank_talk", str(out)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(2)]


@pytest.mark.heavy
def test_two_processes_see_the_same(seen: list[dict[str, Any]]) -> None:
    first, other = seen
    for name in first.keys() - {"shares", "failed", "rolled out own"}:
        assert first[name] == other[name], name
    assert first["agreed"] == "made by 0"
    assert first["world_size"] == 2
    assert first["gathered"] == ["rank 0", "rank 1"]
    assert first["broadcast"] == 5
    assert first["rolled out"] == [[[]], [[0]], [[0], [1, 2]]]
    assert [first["rolled out own"], other["rolled out own"]] == [[[], [], [0]], [[], [0], [1, 2]]]
    assert first["interrupted"] == "Interrupted: interrupted by SIGTERM"
    assert first["reported"] == "interrupted by SIGTERM"  # not a failure of the rank that reports it first
    assert first["together"] == [0, 2]
    assert first["after"] == [0, 1]


@pytest.mark.heavy
def test_shares_are_neighbours_and_together_all(seen: list[dict[str, Any]]) -> None:
    assert [one["shares"] for one in seen] == [[[], [], [0], [0, 1]], [[], [0], [1], [2, 3, 4]]]


@pytest.mark.heavy
def test_a_failure_of_one_rank_ends_the_call_on_all(seen: list[dict[str, Any]]) -> None:
    own, others = "ValueError: no luck on {}", "RankError: rank {0} failed: ValueError: no luck on {0}"
    assert seen[0]["failed"] == [own.format(0), others.format(1)]
    assert seen[1]["failed"] == [others.format(0), own.format(1)]


@pytest.mark.heavy
def test_gradients_are_summed_and_one_that_nobody_has_stays_absent(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["gradients"] == [[3.0, 30.0], [2.0, 3.0], None]
