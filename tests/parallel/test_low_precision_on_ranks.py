"""Weights in bfloat16 on two processes: nearly the weights of one, and the same after a resume (DDP and FSDP2 on gloo)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.low_precision_ranks import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def one(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process trains."""
    return run(tiny_model, "one", tmp_path_factory.mktemp("one") / "found.pt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_bfloat16_weights_as_one_does(
    strategy: str, one: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    two = run(tiny_model, strategy, tmp_path / "found.pt")
    steps, expected_steps = two.pop("optimizer"), one["optimizer"]
    assert steps.keys() == expected_steps.keys() > {"weights", "exp_avg", "exp_avg_scale"}
    assert all(torch.equal(steps[key], value) for key, value in expected_steps.items())
    for name, found in two.items():
        expected = one[name]
        assert all(torch.equal(found["resumed"][key], value) for key, value in found["whole"].items()), name
        # Rows of other lengths are computed with other roundings in bfloat16.
        moved, other = (
            torch.cat(
                [(run["whole"][key].float() - value.float()).view(-1) for key, value in run["start"].items()]
            )
            for run in (expected, found)
        )
        assert float(torch.cosine_similarity(moved, other, dim=0)) > 0.8, name
        if strategy == "fsdp":
            assert found["bytes"] < 0.6 * expected["bytes"], name
