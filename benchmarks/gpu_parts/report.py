"""Results as JSON lines, one for each measured case, and the tables of a part. This module imports no torch."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

Figure = float | int | str | bool | None


@dataclass
class Report:
    """Appends the results of one part to a file as they come, so that a part that is killed leaves those that it has.

    Args:
        part: Name of the part.
        path: File of the results.
        machine: What every line says of the machine, such as the card.
    """

    part: str
    path: Path
    machine: Mapping[str, Figure]
    num_failures: int = field(default=0, init=False)

    def add(self, case: str, **figures: Figure) -> None:
        """Append the figures of a case."""
        line = {**self.machine, "part": self.part, "case": case, **figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def attempt(self, case: str) -> Iterator[None]:
        """Record an exception of the block as the result of the case, so that the next case is still measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.num_failures += 1
            self.add(case, failed=(f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300])
        finally:
            gc.collect()
            if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def read_results(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """Return the results in a file, from a position in bytes on."""
    if not path.exists():
        return []
    with path.open() as file:
        file.seek(start)
        return [json.loads(line) for line in file]


def part_tables(part: str, results: Sequence[Mapping[str, Any]], common: Sequence[str]) -> list[Table]:
    """Return the results of a part as tables: one for all cases with the same figures, one row a case, one column a figure.

    Args:
        part: Name of the part.
        results: Its lines. A figure that is ``None`` is left out.
        common: Keys that are the same in all lines, and no columns.
    """
    tables: dict[tuple[str, ...], Table] = {}
    for result in results:
        figures = {key: value for key, value in result.items() if key not in common and value is not None}
        if (columns := tuple(figures)) not in tables:
            tables[columns] = Table(title=part, title_justify="left")
            for column in columns:
                text = column in ("case", "failed")
                tables[columns].add_column(column.replace("_", " "), justify="left" if text else "right")
        tables[columns].add_row(*(_cell(figure) for figure in figures.values()))
    return list(tables.values())


def _cell(figure: Figure) -> str:
    if isinstance(figure, float):
        return f"{figure:.4g}"
    return f"{figure:,}" if type(figure) is int else str(figure)
