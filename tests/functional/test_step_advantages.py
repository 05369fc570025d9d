"""GiGPO's returns and step-level advantages, by hand and by their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwml_lightning.functional import discounted_returns, step_advantages


def test_discounted_returns_by_hand() -> None:
    returns = discounted_returns(torch.tensor([0.0, -0.1, 10.0]), 0.5)
    assert returns.tolist() == pytest.approx([0.5 * (-0.1 + 0.5 * 10), -0.1 + 5, 10])
    assert discounted_returns(torch.tensor([1.0, 2.0, 3.0])).tolist() == [6, 5, 3]
    assert discounted_returns(torch.empty(0)).shape == (0,)


def test_step_advantages_by_hand() -> None:
    # Two episodes: A, B with rewards 0, 10; A, A with rewards -0.1, 0; discount 0.5. A is visited with returns 5, -0.1 and
    # 0: mean 1.633333, deviations 3.366667, -1.733333, -1.633333, sample standard deviation 2.916048.
    returns = torch.cat([discounted_returns(torch.tensor(r), 0.5) for r in ([0.0, 10.0], [-0.1, 0.0])])
    anchors = ["A", "B", "A", "A"]
    found = step_advantages(returns, anchors).tolist()
    assert found == pytest.approx([1.154531, 0, -0.594412, -0.560119], abs=1e-5)
    mean = step_advantages(returns, anchors, "mean").tolist()
    assert mean == pytest.approx([3.366667, 0, -1.733333, -1.633333], abs=1e-5)
    others = step_advantages(returns, anchors, "leave_one_out").tolist()
    assert others == pytest.approx([5 - (-0.05), 0, -0.1 - 2.5, 0 - 2.45], abs=1e-5)


@given(
    returns=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    anchors=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_step_advantages_sum_to_nothing_in_every_state(returns: list[float], anchors: list[int]) -> None:
    anchors = anchors[: len(returns)]
    values = step_advantages(torch.tensor(returns, dtype=torch.float64), anchors, "mean").tolist()
    for anchor in set(anchors):
        assert sum(v for v, a in zip(values, anchors, strict=True) if a == anchor) == pytest.approx(
            0, abs=1e-6
        )
