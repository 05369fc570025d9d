"""Bootstrap intervals against every resample there is, against SciPy, and against the truth that they should cover."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap

from rwml_lightning.evaluation import bootstrap_intervals


def test_bounds_are_quantiles_of_all_resampled_means() -> None:
    values = np.array([0.0, 0.25, 1.0])
    means = [np.mean(resample) for resample in product(values, repeat=3)]  # 27, equally likely
    for confidence in (0.5, 0.8, 0.95):
        tail = (1 - confidence) / 2
        expected = np.quantile(np.repeat(means, 1000), [tail, 1 - tail])
        (found,) = bootstrap_intervals(values[:, None], confidence, num_resamples=20_000)
        np.testing.assert_allclose(found, expected)


def test_two_transitions_that_differ_say_nothing_and_equal_ones_seem_certain() -> None:
    found = bootstrap_intervals(np.array([[0.0, 0.5], [1.0, 0.5]]))
    np.testing.assert_array_equal(found, [[0.0, 1.0], [0.5, 0.5]])


@pytest.mark.heavy
def test_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(2, 1, size=(300, 2))
    found = bootstrap_intervals(values, num_resamples=20_000)
    for column in range(2):
        theirs = bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=2
        ).confidence_interval
        np.testing.assert_allclose(found[column], theirs, atol=1e-3)


def test_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        values = (generator.random((60, 1)) < 0.3).astype(float)
        ((low, high),) = bootstrap_intervals(values, num_resamples=400, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.91 < covered / 400 < 0.98


def test_the_same_seed_gives_the_same_bounds_whatever_stands_beside() -> None:
    values = np.random.default_rng(0).random((50, 3))
    both = bootstrap_intervals(values)
    np.testing.assert_allclose(both[1:2], bootstrap_intervals(values[:, 1:2]))
    assert not np.array_equal(both, bootstrap_intervals(values, seed=1))


@pytest.mark.heavy
def test_ten_thousand_transitions_take_no_time() -> None:
    values = np.random.default_rng(0).random((10_000, 6))
    start = time.perf_counter()
    found = bootstrap_intervals(values)
    assert time.perf_counter() - start < 5
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 2 * 1.96 * values.std(axis=0) / 100, rtol=0.1)


def test_one_transition_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two transitions, not 1"):
        bootstrap_intervals(np.ones((1, 2)))
