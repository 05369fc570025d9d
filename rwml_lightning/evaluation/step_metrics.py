"""Metrics of the rollouts of a training step."""

from __future__ import annotations

from statistics import fmean, pstdev

from rwml_lightning.evaluation.episodes import measure_game
from rwml_lightning.schema import EpisodeBatch, RolloutBatch


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Compute the metrics of one world-model rollout batch: ``wm/``, ``time/`` and ``throughput/``.

    Means are over predictions. Means of the similarity and of parts of the reward are over predictions that have a value.
    """
    predictions = [p for group in batch.groups for p in group.predictions]
    lengths = [len(p.completion.token_ids) for p in predictions]
    metrics = _batch_metrics("wm", batch, sum(lengths))
    if not predictions:
        return metrics
    for name in sorted({name for p in predictions for name in p.score.parts}):
        metrics[f"wm/{name}"] = fmean(p.score.parts[name] for p in predictions if name in p.score.parts)
    rewards = [p.score.reward for p in predictions]
    metrics |= {
        "wm/reward": fmean(rewards),
        "wm/reward_std": pstdev(rewards),
        "wm/format": fmean(p.score.well_formed for p in predictions),
        "wm/zero_variance_groups": fmean(group.zero_variance for group in batch.groups),
        "wm/completion_tokens": fmean(lengths),
        "wm/cut_off": fmean(p.completion.finish_reason == "length" for p in predictions),
    }
    similarities = [p.score.similarity for p in predictions if p.score.similarity is not None]
    if similarities:
        metrics["wm/similarity"] = fmean(similarities)
    return metrics


def episode_metrics(batch: EpisodeBatch) -> dict[str, float]:
    """Compute the metrics of one batch of episodes: ``policy/``, ``time/`` and ``throughput/``.

    Means are over games, so that each game has the same weight; see :func:`rwml_lightning.evaluation.measure_game`.
    ``policy/return`` is the return of an episode, including the penalty for invalid actions.
    """
    members = [member for group in batch.groups for member in group.members]
    num_tokens = sum(len(s.completion.token_ids) for member in members for s in member.samples)
    metrics = _batch_metrics("policy", batch, num_tokens)
    if not batch.groups:
        return metrics
    games = [measure_game(group) for group in batch.groups]
    for name in dict.fromkeys(name for game in games for name in game):
        if not name.startswith("pass@"):
            metrics[f"policy/{name}"] = fmean(game[name] for game in games if name in game)
    metrics["policy/return"] = fmean(member.total_reward for member in members)
    metrics["policy/zero_variance_groups"] = fmean(group.zero_variance for group in batch.groups)
    return metrics


def _batch_metrics(prefix: str, batch: RolloutBatch | EpisodeBatch, num_tokens: int) -> dict[str, float]:
    metrics = {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    metrics[f"{prefix}/dropped_groups"] = float(len(batch.dropped))
    if batch.groups and batch.seconds.get("generate"):
        metrics["throughput/generated_tokens_per_s"] = num_tokens / batch.seconds["generate"]
    return metrics
