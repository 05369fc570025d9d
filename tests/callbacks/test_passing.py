"""What is due every N optimizer steps, when a batch takes several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwml_callbacks import StepCheckpoint
from rwml_callbacks.passing import passes_multiple


@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 200))
def test_each_multiple_is_passed_once(taken: int, every: int, count: int) -> None:
    due = [step for step in range(taken, count + 1, taken) if passes_multiple(step, taken, every)]
    multiples = range(every, count - count % taken + 1, every)
    assert due == sorted({-(-multiple // taken) * taken for multiple in multiples})


def test_an_interval_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint_every is 0; it must be at least 1"):
        StepCheckpoint("folder", 0)
