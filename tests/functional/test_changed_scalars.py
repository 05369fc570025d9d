"""Changed scalars, counted by hand."""

from __future__ import annotations

import pytest
import torch

from rwml_lightning.functional import count_changed


def test_changes_are_relative_to_the_larger_side() -> None:
    before = torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0, 1000.0, 1e-6, 2.0])
    after = torch.tensor([1.0009, 1.0011, 1.0, 0.0, 1e-9, 1000.9, 1.01e-6, 0.0])
    #                     no      yes     yes  no   yes   no      yes      yes
    assert count_changed(before, after) == 5
    assert count_changed(after, before) == 5
    assert count_changed(before, after, tolerance=0.5) == 3


def test_the_limit_itself_is_no_change() -> None:
    before, after = torch.tensor([0.75]), torch.tensor([1.0])
    assert count_changed(before, after, tolerance=0.25) == 0
    assert count_changed(before, after, tolerance=0.2499) == 1


def test_rounding_to_the_trained_dtype_is_no_change() -> None:
    before = torch.linspace(-1, 1, 1001)
    assert count_changed(before, before.bfloat16()) == 0
    assert count_changed(before.bfloat16(), before) > 500  # the other way round, precision was gained


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the shapes differ: \(2,\) before, \(3,\) after"):
        count_changed(torch.zeros(2), torch.zeros(3))
