"""Groups as JSONL, CSV or Markdown.

JSONL holds what the run store has, as ASCII. The others are for people: characters that a terminal would obey stand as their
escapes there, and no text is a formula of a spreadsheet or markup of Markdown.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rwml_lightning.printable import printable
from rwml_lightning.trace import GroupDetail, PredictionRecord, TraceReader

Found = tuple[GroupDetail, Sequence[PredictionRecord]]
CSV_COLUMNS = (
    "stage", "step", "source", "transition_id", "game", "kind", "action", "member", "predicted", "real", "similarity",
    "reward", "advantage", "well_formed", "tokens", "policy_version", "thinking",
)  # fmt: skip


def read_groups(reader: TraceReader, ids: Iterable[int]) -> Iterator[Found]:
    """Groups by id, in order, one at a time; those that were replaced meanwhile are left out."""
    for group_id in ids:
        detail = reader.group(group_id)
        if detail is not None:
            yield detail, reader.predictions(group_id)


def write_jsonl(groups: Iterable[Found], file: TextIO) -> None:
    """A line a group, with everything the run store has of it."""
    for detail, predictions in groups:
        row = {
            "group": asdict(detail.summary),
            "transition": asdict(detail.transition),
            "prompt": detail.prompt,
        }
        file.write(json.dumps(row | {"predictions": [asdict(one) for one in predictions]}) + "\n")


def write_csv(groups: Iterable[Found], file: TextIO) -> None:
    """A row a prediction."""
    writer = csv.DictWriter(file, CSV_COLUMNS)
    writer.writeheader()
    for detail, predictions in groups:
        summary = detail.summary
        shared = {name: getattr(summary, name) for name in CSV_COLUMNS[:7]} | {
            "real": detail.transition.next_state
        }
        for one in predictions:
            row: dict[str, Any] = {name: getattr(one, name) for name in CSV_COLUMNS[10:]}
            row |= shared | {"member": one.member, "predicted": one.next_state}
            writer.writerow({name: _cell(value) for name, value in row.items()})


def write_markdown(groups: Iterable[Found], file: TextIO) -> None:
    """A section a group: action, real next state, and a list of predictions."""
    for detail, predictions in groups:
        file.write(markdown(detail, predictions) + "\n")


def markdown(detail: GroupDetail, predictions: Sequence[PredictionRecord]) -> str:
    """One group for people; text of the model and the world stands in code blocks."""
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
    """A cell of CSV; an apostrophe keeps a spreadsheet from taking a text for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _code(text: str) -> str:
    """A text in a line, as code; nothing for nothing."""
    line = printable(" ".join(text.split()))
    fence, room = _fence(line, 1), " " if "`" in (line[:1], line[-1:]) else ""
    return f"{fence}{room}{line}{room}{fence}" if line else ""


def _block(text: str) -> list[str]:
    """A code block."""
    shown = printable(text)
    fence = _fence(shown, 3)
    return ["", fence, shown, fence, ""]


def _fence(text: str, shortest: int) -> str:
    """Back quotes, more than stand anywhere in the text."""
    return "`" * max([shortest, *(len(run) + 1 for run in re.findall("`+", text))])


FORMATS: Mapping[str, Callable[[Iterable[Found], TextIO], None]] = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".md": write_markdown,
}
"""Writers by ending of the file."""


def export(database: Path, ids: Iterable[int], output: Path) -> None:
    """Write groups to a file that appears only when it is whole.

    Args:
        database: Run store.
        ids: Groups, in order.
        output: Its ending says how: ``.jsonl``, ``.csv`` or ``.md``.

    Raises:
        ValueError: Another ending, or a file that exists.
    """
    write = FORMATS.get(output.suffix.lower())
    if write is None:
        raise ValueError(f"{output}: the ending says how to write it, {', '.join(FORMATS)}")
    if output.exists():
        raise ValueError(f"{output} exists; name another file")
    partial = output.with_name(f".{output.name}")
    # What no encoding can say, such as half a surrogate pair, is written as its escape.
    with TraceReader(database) as reader, partial.open("w", errors="backslashreplace", newline="") as file:
        write(read_groups(reader, ids), file)
    partial.rename(output)
