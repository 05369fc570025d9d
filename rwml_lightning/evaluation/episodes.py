"""Evaluation of a policy: success, turns and tokens by kind of task, with confidence intervals over games."""

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
from rwml_lightning.evaluation.tables import value_cell
from rwml_lightning.schema import EpisodeGroup, Playthrough
from rwml_lightning.terminal import make_table

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
"""Measures and their names in tables; see :func:`measure_game`. ``pass@k`` and ``pass^k`` require at least k episodes of a game.
``do_nothing`` is the reward of an agent that ends the episode at once; only some environments report it."""

_SHARES = {"success", "do_nothing", "invalid_actions", "repeated_actions", "truncated", "invalid_tool_calls"}


@dataclass(frozen=True)
class EpisodeResult:
    """One row of an evaluation table: means over games.

    Args:
        name: ``all``, or a kind of task.
        count: Number of episodes in the row.
        num_games: Number of games of these episodes.
        values: Mean of each measure over the games that have it.
        intervals: Lower and upper bound at 95 % by measure; empty for a single game.
    """

    name: str
    count: int
    num_games: int
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)


def measure_game(group: EpisodeGroup) -> dict[str, float]:
    """Measure the episodes of one game.

    - ``success``: Share of solved episodes. If the environment does not report success, an episode with a return above 0
      counts as solved.
    - ``steps_to_success``: Mean number of turns of the solved episodes.
    - ``turns``: Mean number of turns of all episodes.
    - ``invalid_actions``: Share of turns with an action that the environment did not accept.
    - ``repeated_actions``: Share of turns that repeat an earlier action of the episode after the same observation.
    - ``completion_tokens``: Mean number of sampled tokens per turn.
    - ``truncated``: Share of episodes that were cut off by a limit.
    - ``pass@k``: Unbiased probability that at least one of k episodes is solved (arXiv 2107.03374, equation 1).
    - ``pass^k``: Probability that all of k episodes are solved (arXiv 2406.12045, section 4).

    k takes the powers of 2 up to the number of episodes. Measures from the environment (``info["measures"]``) keep their names.
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
    """Count the turns that repeat an earlier action of the episode after the same observation."""
    pairs = [(turn.observation, turn.action) for turn in member.episode.turns]
    return len(pairs) - len(set(pairs))


def pass_at_k(num_episodes: int, num_solved: int, k: int) -> float:
    """Compute the probability that at least one of k episodes, drawn without replacement, is solved."""
    return 1 - comb(num_episodes - num_solved, k) / comb(num_episodes, k)


def pass_all_k(num_episodes: int, num_solved: int, k: int) -> float:
    """Compute the probability that all of k episodes, drawn without replacement, are solved."""
    return comb(num_solved, k) / comb(num_episodes, k)


def summarise_episodes(groups: Sequence[EpisodeGroup]) -> list[EpisodeResult]:
    """Summarise episodes in rows: ``all``, then each split if there are several, then each kind of task."""
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
    """Return flat metrics: ``<prefix>/success`` with its bounds for ``all``, ``<prefix>/<kind>/success`` for other rows."""
    metrics: dict[str, float] = {}
    for result in results:
        scope = prefix if result.name == "all" else f"{prefix}/{result.name}"
        metrics |= {f"{scope}/{name}": value for name, value in result.values.items()}
        if result.name == "all" and "success" in result.intervals:
            metrics[f"{scope}/success_low"], metrics[f"{scope}/success_high"] = result.intervals["success"]
    return metrics


def render_episodes(title: str, rows: Mapping[str, EpisodeResult]) -> RenderableType:
    """Render a table with one named row per result and one column per measure.

    The number after ± is half the width of the 95 % interval. The table shows pass@k only for the largest k, so that it fits
    80 columns. A second table shows the environment's own measures and pass^k.
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
    names = (EPISODE_MEASURES.get(measure, measure.replace("_", "\n")) for measure in measures)
    columns = ["", "games", "n", *names]
    table = make_table(title, columns, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name, result in rows.items():
        cells = [_cell(result, measure) for measure in measures]
        table.add_row(name, str(result.num_games), str(result.count), *cells, end_section=name == "all")
    return table


def _cell(result: EpisodeResult, measure: str) -> str:
    value = result.values.get(measure)
    is_share = measure in _SHARES or measure.startswith("pass")
    if value is None or is_share:
        return value_cell(value, result.intervals.get(measure))
    return f"{value:.1f}"
