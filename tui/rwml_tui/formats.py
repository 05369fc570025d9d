"""Export of groups as JSONL, CSV or Markdown.

JSONL holds all fields of the run store, as ASCII. CSV and Markdown are for human readers: control characters are written as
escapes, and no text can act as a spreadsheet formula or as Markdown markup.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rwml_lightning.files import replacing
from rwml_lightning.printable import printable
from rwml_lightning.trace import GroupDetail, PredictionRecord, TraceReader

Found = tuple[GroupDetail, Sequence[PredictionRecord]]
CSV_COLUMNS = (
    "stage", "step", "source", "transition_id", "game", "kind", "action", "member", "predicted", "real", "similarity",
    "reward", "advantage", "well_formed", "tokens", "policy_version", "thinking",
)  # fmt: skip


def read_groups(reader: TraceReader, ids: Iterable[int]) -> Iterator[Found]:
    """Yield groups by id, in order, one at a time; groups that were replaced in the meantime are left out."""
    for group_id in ids:
        detail = reader.group(group_id)
        if detail is not None:
            yield detail, reader.predictions(group_id)


def write_jsonl(groups: Iterable[Found], file: TextIO) -> None:
    """Write one line per group, with every field of the run store."""
    for detail, predictions in groups:
        row = {
            "group": asdict(detail.summary),
            "transition": asdict(detail.transition),
            "prompt": detail.prompt,
            "predictions": [asdict(one) for one in predictions],
        }
        file.write(json.dumps(row) + "\n")


def write_csv(groups: Iterable[Found], file: TextIO) -> None:
    """Write one row per prediction."""
    writer = csv.DictWriter(file, CSV_COLUMNS)
    writer.writeheader()
    for detail, predictions in groups:
        row: dict[str, Any] = {name: getattr(detail.summary, name) for name in CSV_COLUMNS[:7]}
        row["real"] = detail.transition.next_state
        for one in predictions:
            row |= {name: getattr(one, name) for name in CSV_COLUMNS[10:]}
            row |= {"member": one.member, "predicted": one.next_state}
            writer.writerow({name: _cell(value) for name, value in row.items()})


def write_markdown(groups: Iterable[Found], file: TextIO) -> None:
    """Write one section per group: action, real next state and predictions."""
    for detail, predictions in groups:
        file.write(markdown(detail, predictions) + "\n")


def markdown(detail: GroupDetail, predictions: Sequence[PredictionRecord]) -> str:
    """Format one group as Markdown; texts of the model and the environment are put into code blocks."""
    summary, transition = detail.summary, detail.transition
    place = f"{_code(summary.stage)} step {summary.step}, {_code(summary.source)}"
    lines = [f"## {place}: {_code(transition.action)}", "", _code(transition.task), ""]
    lines += ["State:", *_block(transition.observation)]
    lines += ["Real next state:", *_block(transition.next_state)]
    for one in predictions:
        similarity = "-" if one.similarity is None else f"{one.similarity:.3f}"
        lines += [f"Prediction {one.member + 1}, similarity {similarity}, reward {one.reward:g}:"]
        lines += _block(one.text if one.next_state is None else one.next_state)
    return "\n".join(lines)


def _cell(value: Any) -> Any:
    """Format a CSV cell; a leading apostrophe keeps a spreadsheet from reading a text as a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _code(text: str) -> str:
    """Format a text as inline code on one line; an empty text stays empty."""
    line = printable(" ".join(text.split()))
    fence, room = _fence(line, 1), " " if "`" in (line[:1], line[-1:]) else ""
    return f"{fence}{room}{line}{room}{fence}" if line else ""


def _block(text: str) -> list[str]:
    """Format a text as a code block."""
    shown = printable(text)
    fence = _fence(shown, 3)
    return ["", fence, shown, fence, ""]


def _fence(text: str, shortest: int) -> str:
    """Return a fence of back quotes that is longer than any run of them in the text."""
    return "`" * max([shortest, *(len(run) + 1 for run in re.findall("`+", text))])


FORMATS: Mapping[str, Callable[[Iterable[Found], TextIO], None]] = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".md": write_markdown,
}
"""Writers by file extension."""


def export(database: Path, ids: Iterable[int], output: Path) -> None:
    """Write groups to a new file, which appears only once it is complete.

    Args:
        database: Run store.
        ids: Ids of the groups, in the order of the file.
        output: File to write. Its extension sets the format: ``.jsonl``, ``.csv`` or ``.md``.

    Raises:
        ValueError: The extension is unknown, or the file exists.
    """
    write = FORMATS.get(output.suffix.lower())
    if write is None:
        raise ValueError(f"{output}: unknown file extension; use one of {', '.join(FORMATS)}")
    if output.exists():
        raise ValueError(f"{output} exists; name another file")
    with (
        TraceReader(database) as reader,
        replacing(output) as partial,
        # Characters that cannot be encoded, such as a lone surrogate, are written as escapes.
        partial.open("w", errors="backslashreplace", newline="") as file,
    ):
        write(read_groups(reader, ids), file)
