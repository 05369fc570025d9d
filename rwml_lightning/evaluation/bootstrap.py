"""Percentile bootstrap intervals of means, for all measures at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_CHUNK_ELEMENTS = 1 << 22  # number of resampled indices in memory at once, about 100 MB with their counts


def bootstrap_intervals(
    values: Float[np.ndarray, "transitions measures"],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, "measures 2"]:
    """Compute the percentile bootstrap interval of the mean of every column (Efron 1979).

    Rows are resampled as a whole, which keeps the samples and the measures of one transition together. If ``values`` are
    differences, this also keeps the predictions of two models for the same transition together.

    Args:
        values: Values with one row per transition and one column per measure.
        confidence: Share of the resampled means that the interval covers.
        num_resamples: Number of resampled means.
        seed: Seed of the resampling. The same seed gives the same interval.

    Returns:
        Lower and upper bound of every measure.

    Raises:
        ValueError: ``values`` has fewer than two rows, so their spread is unknown.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"an interval needs at least two transitions, not {count}")
    generator = np.random.default_rng(seed)
    chunk = max(_CHUNK_ELEMENTS // count, 1)
    means = np.concatenate(
        [
            _draw_counts(generator, min(chunk, num_resamples - start), count) @ values / count
            for start in range(0, num_resamples, chunk)
        ]
    )
    tail = (1 - confidence) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).T


def _draw_counts(
    generator: np.random.Generator, num_resamples: int, count: int
) -> Float[np.ndarray, "resamples transitions"]:
    """Draw resamples of ``count`` rows each, and return how often each row occurs in each resample."""
    drawn = generator.integers(0, count, (num_resamples, count))
    drawn += count * np.arange(num_resamples)[:, None]  # a separate index range for every resample
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * count)
    return counts.reshape(num_resamples, count).astype(np.float64)
