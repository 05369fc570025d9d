"""Tables of results, at most 100 columns wide. A cell shows a value and, after ±, half the width of its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from rwml_lightning.evaluation.measures import MEASURES
from rwml_lightning.evaluation.results import Difference, Result
from rwml_lightning.terminal import make_table

_SECTION_ENDS = ("all", "not knowable")


def render_results(title: str, results: Sequence[Result]) -> Table:
    """Render one row per result, for example a kind of step or a floor, and one column per measure."""
    measures = _measures(results)
    table = make_table(title, ["", "n", *(MEASURES[name] for name in measures)])
    for result in results:
        _add_result(table, result.name, result, measures, end_section=result.name in _SECTION_ENDS)
    return table


def render_comparison(
    title: str,
    results: Mapping[str, Result],
    differences: Mapping[str, Difference],
    floors: Sequence[Result],
) -> Table:
    """Render one row per model, with its paired difference to the first model below it, and the floors at the end."""
    measures = _measures([*results.values(), *floors])
    table = make_table(title, ["", "n", *(MEASURES[name] for name in measures)])
    for name, result in results.items():
        difference = differences.get(name)
        _add_result(table, name, result, measures, end_section=difference is None)
        if difference is not None:
            cells = [
                value_cell(difference.values.get(m), difference.intervals.get(m), signed=True)
                for m in measures
            ]
            table.add_row("  to the first", str(difference.num_transitions), *cells, end_section=True)
    for floor in floors:
        _add_result(table, f"floor: {floor.name}", floor, measures)
    return table


def render_by_kind(title: str, columns: Mapping[str, Sequence[Result]], measure: str = "accuracy") -> Table:
    """Render one measure by kind of step, with one row per kind and one column per evaluation."""
    table = make_table(title, ["", "n", *columns])
    by_name = {column: {result.name: result for result in results} for column, results in columns.items()}
    for name in dict.fromkeys(result.name for results in columns.values() for result in results):
        found = [results.get(name) for results in by_name.values()]
        count = next(result.num_transitions for result in found if result is not None)
        cells = ["" if result is None else _result_cell(result, measure) for result in found]
        table.add_row(name, str(count), *cells, end_section=name in _SECTION_ENDS)
    return table


def _add_result(
    table: Table, name: str, result: Result, measures: Sequence[str], end_section: bool = False
) -> None:
    cells = [_result_cell(result, name) for name in measures]
    table.add_row(name, str(result.num_transitions), *cells, end_section=end_section)


def _measures(results: Sequence[Result]) -> list[str]:
    """Return the measures that at least one row has."""
    return [name for name in MEASURES if any(getattr(result, name) is not None for result in results)]


def _result_cell(result: Result, measure: str) -> str:
    return value_cell(getattr(result, measure), result.intervals.get(measure))


def value_cell(value: float | None, interval: Sequence[float] | None, signed: bool = False) -> str:
    """Format a value as ``0.52 ±.06``, or a difference as ``+.12 ±.06``."""
    if value is None:
        return ""
    text = f"{value:+.2f}".replace("+0.", "+.").replace("-0.", "-.") if signed else f"{value:.2f}"
    if interval is None:
        return text
    low, high = interval
    return f"{text} ±{f'{(high - low) / 2:.2f}'.removeprefix('0')}"
