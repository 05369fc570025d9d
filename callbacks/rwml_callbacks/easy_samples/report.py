"""Metrics of the easy-sample filter for the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from rwml_callbacks.easy_samples.marks import Marks, histogram
from rwml_callbacks.easy_samples.parts import Throughput


def filter_metrics(marks: Marks, num_judged: int, throughput: Throughput) -> dict[str, float]:
    """Return numbers of judged, easy, and easy but kept transitions, the threshold and the throughput as metrics."""
    assert marks.tau_easy is not None
    return {
        "filter/judged": float(num_judged),
        "filter/easy": float(len(marks.easy)),
        "filter/easy_kept": float(len(marks.easy_kept)),
        "filter/tau_easy": marks.tau_easy,
        "filter/generator_share_of_time": throughput.generator_share,
        "throughput/filter_tokens_per_s": throughput.tokens_per_s,
    }


def log_filter(
    loggers: Iterable[Logger], metrics: Mapping[str, float], mean_rewards: Mapping[str, float]
) -> None:
    """Log the metrics to every logger, and the histogram of mean rewards to W&B."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=0)
        if isinstance(logger, WandbLogger):
            import wandb

            counts = np.array(histogram(list(mean_rewards.values())))
            bars = wandb.Histogram(np_histogram=(counts, np.linspace(0, 1, len(counts) + 1)))
            logger.experiment.log({"filter/mean_reward": bars, "trainer/global_step": 0})
