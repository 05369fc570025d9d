"""Metrics of the rollouts of a training step."""

from __future__ import annotations

import math
from statistics import fmean

from rwml_lightning.evaluation.episodes import measure_game
from rwml_lightning.schema import EpisodeBatch, RolloutBatch


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Compute the metrics of one world-model rollout batch: ``wm/``, ``time/`` and ``throughput/``.

    Means are over predictions. Means of the similarity and of parts of the reward are over predictions that have a value.
    """
    predictions = [p for group in batch.groups for p in group.predictions]
    metrics = {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    metrics["wm/dropped_groups"] = float(len(batch.dropped))
    if not predictions:
        return metrics
    rewards = [p.score.reward for p in predictions]
    similarities = [p.score.similarity for p in predictions if p.score.similarity is not None]
    lengths = [len(p.completion.token_ids) for p in predictions]
    mean = sum(rewards) / len(rewards)
    for name in sorted({name for p in predictions for name in p.score.parts}):
        values = [p.score.parts[name] for p in predictions if name in p.score.parts]
        metrics[f"wm/{name}"] = sum(values) / len(values)
    metrics |= {
        "wm/reward": mean,
        "wm/reward_std": math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)),
        "wm/format": sum(p.score.well_formed for p in predictions) / len(predictions),
        "wm/zero_variance_groups": sum(group.zero_variance for group in batch.groups) / len(batch.groups),
        "wm/completion_tokens": sum(lengths) / len(lengths),
        "wm/cut_off": sum(p.completion.finish_reason == "length" for p in predictions) / len(predictions),
    }
    if similarities:
        metrics["wm/similarity"] = sum(similarities) / len(similarities)
    if batch.seconds.get("generate"):
        metrics["throughput/generated_tokens_per_s"] = sum(lengths) / batch.seconds["generate"]
    return metrics


def episode_metrics(batch: EpisodeBatch) -> dict[str, float]:
    """Compute the metrics of one batch of episodes: ``policy/``, ``time/`` and ``throughput/``.

    Means are over games, so that each game has the same weight; see :func:`rwml_lightning.evaluation.measure_game`.
    ``policy/return`` is the return of an episode, including the penalty for invalid actions.
    """
    metrics = {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    metrics["policy/dropped_groups"] = float(len(batch.dropped))
    if not batch.groups:
        return metrics
    games = [measure_game(group) for group in batch.groups]
    for name in dict.fromkeys(name for game in games for name in game):
        if not name.startswith("pass@"):
            metrics[f"policy/{name}"] = fmean(game[name] for game in games if name in game)
    members = [member for group in batch.groups for member in group.members]
    metrics["policy/return"] = fmean(member.total_reward for member in members)
    metrics["policy/zero_variance_groups"] = fmean(group.zero_variance for group in batch.groups)
    if batch.seconds.get("generate"):
        tokens = sum(len(s.completion.token_ids) for member in members for s in member.samples)
        metrics["throughput/generated_tokens_per_s"] = tokens / batch.seconds["generate"]
    return metrics
