"""The run store (``trace.db``): the trainer writes it and the dashboard reads it. Standard library only."""

from rwml_lightning.trace.locate import newest_run, trace_path
from rwml_lightning.trace.query import COLUMNS, Filter, GroupQuery
from rwml_lightning.trace.reader import TraceReader
from rwml_lightning.trace.records import (
    Command,
    CommandName,
    EpisodeSummary,
    Evaluation,
    GroupDetail,
    GroupSummary,
    PredictionRecord,
    Step,
)
from rwml_lightning.trace.tables import TraceError
from rwml_lightning.trace.writer import TraceWriter

__all__ = [
    "COLUMNS",
    "Command",
    "CommandName",
    "EpisodeSummary",
    "Evaluation",
    "Filter",
    "GroupDetail",
    "GroupQuery",
    "GroupSummary",
    "PredictionRecord",
    "Step",
    "TraceError",
    "TraceReader",
    "TraceWriter",
    "newest_run",
    "trace_path",
]
