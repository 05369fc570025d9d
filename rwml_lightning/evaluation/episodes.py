"""How well a policy acts: success and what it costs, by kind of task, with confidence intervals over games."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import fmean

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from rwml_lightning.evaluation.bootstrap import bootstrap_intervals
from rwml_lightning.schema import EpisodeGroup, Playthrough

EPISODE_MEASURES: Mapping[str, str] = {
    "success": "success",
    "do_nothing": "do\nnothing",
    "steps_to_success": "steps to\nsuccess",
    "turns": "turns",
    "invalid_actions": "invalid\nactions",
    "repeated_actions": "repeated\nactions",
    "truncated": "cut off",
    "completion_tokens": "tokens\na turn",
}
"""Measures and what a table calls them; see :func:`measure_game`. ``pass@k`` and ``pass^k`` are measured where a game is played
k times; ``do_nothing``, what an agent earns that ends the episode at once, where the environment says so."""

_SHARES = {"success", "do_nothing", "invalid_actions", "repeated_actions", "truncated", "invalid_tool_calls"}


@dataclass(frozen=True)
class EpisodeResult:
    """One row of an evaluation table: means over games.

    Args:
        name: ``all``, or a kind of task.
        count: Episodes in the row.
        num_games: Games that they play.
        values: Mean of each measure over the games that have it.
        intervals: Lower and upper bound at 95 % by measure; empty for a single game.
    """

    name: str
    count: int
    num_games: int
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)


def measure_game(group: EpisodeGroup) -> dict[str, float]:
    """The episodes of one game, measured.

    ``success`` is the share of episodes that were solved (where the environment does not say, that were paid anything above 0),
    ``steps_to_success`` the mean number of turns of those, ``invalid_actions`` and ``repeated_actions`` shares of turns: what
    the environment did not accept, and what was done in the same episode in answer to the same observation before.
    ``truncated`` is the share of episodes that a limit cut off. ``pass@k`` is the chance that at least one of k episodes is
    solved, unbiased (arXiv 2107.03374, equation 1), ``pass^k`` that all of them are (arXiv 2406.12045, section 4), for powers of
    2 up to the number of episodes. What the environment itself measured (``info["measures"]``) is there by its own names.
    """
    members = group.members
    solved = [member.episode.solved for member in members]
    turns = [turn for member in members for turn in member.episode.turns]
    tokens = [len(sample.completion.token_ids) for member in members for sample in member.samples]
    values = {
        "success": fmean(solved),
        "turns": fmean(len(member.episode.turns) for member in members),
        "truncated": fmean(member.episode.truncated for member in members),
    }
    if turns:
        values["invalid_actions"] = fmean(not turn.valid for turn in turns)
        values["repeated_actions"] = sum(map(num_repeated, members)) / len(turns)
        values["completion_tokens"] = fmean(tokens)
    if any(solved):
        values["steps_to_success"] = fmean(
            len(m.episode.turns) for m, won in zip(members, solved, strict=True) if won
        )
    k = 2
    while k <= len(members):
        values[f"pass@{k}"] = pass_at_k(len(members), sum(solved), k)
        values[f"pass^{k}"] = pass_all_k(len(members), sum(solved), k)
        k *= 2
    own = {name for member in members for name in member.episode.measures}
    for name in own - values.keys():
        values[name] = fmean(
            member.episode.measures[name] for member in members if name in member.episode.measures
        )
    return values


def num_repeated(member: Playthrough) -> int:
    """Turns that did what an earlier turn of the episode had done in answer to the same observation."""
    pairs = [(turn.observation, turn.action) for turn in member.episode.turns]
    return len(pairs) - len(set(pairs))


def pass_at_k(num_episodes: int, num_solved: int, k: int) -> float:
    """Chance that k of the episodes, drawn without replacement, have a solved one among them."""
    return 1 - comb(num_episodes - num_solved, k) / comb(num_episodes, k)


def pass_all_k(num_episodes: int, num_solved: int, k: int) -> float:
    """Chance that k of the episodes, drawn without replacement, are all solved."""
    return comb(num_solved, k) / comb(num_episodes, k)


def summarise_episodes(groups: Sequence[EpisodeGroup]) -> list[EpisodeResult]:
    """``all``, then each split of the environment where there are several, then each kind of task."""
    rows = {"all": list(groups)}
    splits = sorted({group.split for group in groups})
    if len(splits) > 1:
        rows |= {split: [group for group in groups if group.split == split] for split in splits}
    kinds = {group.members[0].episode.kind for group in groups}
    if kinds != {""}:
        for kind in sorted(kinds):
            rows[kind or "other"] = [group for group in groups if group.members[0].episode.kind == kind]
    return [_summarise(name, row) for name, row in rows.items()]


def _summarise(name: str, groups: Sequence[EpisodeGroup]) -> EpisodeResult:
    measured = [measure_game(group) for group in groups]
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for measure in dict.fromkeys(measure for one in measured for measure in one):
        column = np.array([[one[measure]] for one in measured if measure in one])
        values[measure] = float(column.mean())
        if len(column) > 1:
            intervals[measure] = bootstrap_intervals(column)[0].tolist()
    count = sum(len(group.members) for group in groups)
    return EpisodeResult(name, count, len(groups), values, intervals)


def success_metrics(results: Iterable[EpisodeResult], prefix: str) -> dict[str, float]:
    """Flat metrics: ``<prefix>/success`` for ``all``, with its bounds, ``<prefix>/<kind>/success`` for the rest."""
    metrics: dict[str, float] = {}
    for result in results:
        scope = prefix if result.name == "all" else f"{prefix}/{result.name}"
        metrics |= {f"{scope}/{name}": value for name, value in result.values.items()}
        if result.name == "all" and "success" in result.intervals:
            metrics[f"{scope}/success_low"], metrics[f"{scope}/success_high"] = result.intervals["success"]
    return metrics


def render_episodes(title: str, rows: Mapping[str, EpisodeResult]) -> RenderableType:
    """A row a result under the name that it is given; a column a measure, behind ± half the width of its 95 % interval.

    Of pass@k the largest k alone is shown, so that a terminal of 80 columns is wide enough. What the environment itself measured
    comes in a table below, with pass^k.
    """
    known = list(dict.fromkeys(measure for result in rows.values() for measure in result.values))
    success, *others = EPISODE_MEASURES
    main = [success, *_largest(known, "pass@"), *others]
    own = [name for name in known if name not in EPISODE_MEASURES and not name.startswith("pass")]
    tables = [_table(title, rows, [name for name in main if name in known])]
    if own:
        tables.append(
            _table("As the environment measures them", rows, [*_largest(known, "pass^"), *sorted(own)])
        )
    return Group(*tables)


def _largest(measures: Iterable[str], prefix: str) -> list[str]:
    return sorted((m for m in measures if m.startswith(prefix)), key=lambda m: int(m[len(prefix) :]))[-1:]


def _table(title: str, rows: Mapping[str, EpisodeResult], measures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    names = (EPISODE_MEASURES.get(measure, measure.replace("_", "\n")) for measure in measures)
    for number, column in enumerate(["", "games", "n", *names]):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for name, result in rows.items():
        cells = [
            _cell(
                result.values.get(measure),
                result.intervals.get(measure),
                measure not in _SHARES and not measure.startswith("pass"),
            )
            for measure in measures
        ]
        table.add_row(name, str(result.num_games), str(result.count), *cells, end_section=name == "all")
    return table


def _cell(value: float | None, interval: Sequence[float] | None, is_count: bool) -> str:
    if value is None:
        return ""
    if is_count:
        return f"{value:.1f}"
    if interval is None:
        return f"{value:.2f}"
    low, high = interval
    return f"{value:.2f} ±{f'{(high - low) / 2:.2f}'.removeprefix('0')}"
