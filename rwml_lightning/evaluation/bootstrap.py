"""How far a mean may lie from the truth: percentile bootstrap intervals, all measures at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_CHUNK_ELEMENTS = 1 << 22  # resampled indices that exist at once, some 100 MB with their counts


def bootstrap_intervals(
    values: Float[np.ndarray, "transitions measures"],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, "measures 2"]:
    """Percentile bootstrap interval of the mean of every column (Efron 1979).

    A row is drawn as a whole, so that what belongs together stays together: the samples of one transition, its measures,
    or two models' answers to it when ``values`` are differences.

    Args:
        values: One row a transition, one column a measure.
        confidence: Share of the resampled means that the interval covers.
        num_resamples: Means that are drawn.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper bound of every measure.

    Raises:
        ValueError: Fewer than two rows, which say nothing about their spread.
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
    """How often each of ``count`` rows stands in each resample; every resample has ``count`` draws."""
    drawn = generator.integers(0, count, (num_resamples, count))
    drawn += count * np.arange(num_resamples)[:, None]  # a range of its own for every resample
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * count)
    return counts.reshape(num_resamples, count).astype(np.float64)
